"""Errors of averages over correlated chains."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from boltztilt.sampling.estimate import Estimate

WINDOW = 5.0  # correlation times after which the sum of the autocorrelation is cut


def autocorrelation_time(values: Float64[Tensor, "chains rounds"]) -> float:
    """1 + 2 sum_t rho(t): how many successive rounds are worth one independent value.

    rho is the autocorrelation about the mean of all chains: chains that stay at different values
    count as correlated for as long as they last. The sum ends at five times its own result.

    Reference: Sokal (1997), Monte Carlo methods in statistical mechanics, section 3,
        https://doi.org/10.1007/978-1-4899-0319-8_6
    """
    n_rounds = values.shape[1]
    deviations = values - values.mean()
    power = torch.fft.rfft(deviations, 2 * n_rounds).abs().square()
    products = torch.fft.irfft(power, 2 * n_rounds)[:, :n_rounds].mean(dim=0)
    covariance = products / torch.arange(n_rounds, 0, -1)
    if not covariance[0] > 0:
        return 1.0
    times = 2.0 * (covariance / covariance[0]).cumsum(dim=0) - 1.0
    converged = (torch.arange(n_rounds) >= WINDOW * times).nonzero()
    time = times[converged[0]] if len(converged) else times.max()
    return max(float(time), 1.0)


def correlated_mean(values: Float64[Tensor, "chains rounds"]) -> Estimate:
    """The mean of correlated chains with its standard error, the larger of two estimates of it.

    One is that of the autocorrelation time, the other the spread of the means of the chains.
    A quantity that never changes has an unknown error: NaN.
    """
    variance = float(values.var())
    if not variance > 0:
        return Estimate(float(values.mean()), math.nan)
    within = math.sqrt(variance * autocorrelation_time(values) / values.numel())
    means = values.mean(dim=1)
    between = float(means.std()) / math.sqrt(len(means)) if len(means) > 1 else 0.0
    return Estimate(float(values.mean()), max(within, between))


def effective_number(values: Float64[Tensor, "chains rounds"]) -> float:
    """var / error²: as many independent values would tell the mean as well."""
    error = correlated_mean(values).error
    return min(float(values.var()) / error**2, float(values.numel()))
