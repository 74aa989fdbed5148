"""Averages with their error bars."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        """The value rounded where its error begins, such as `-43.06 ± 0.05`."""
        if not math.isfinite(self.error) or self.error <= 0:
            return f"{self.value:.4g} ± {self.error:.2g}"
        exponent = math.floor(math.log10(self.error))
        leading_one = self.error < 2 * 10.0**exponent
        decimals = max(0, -exponent + int(leading_one))
        return f"{self.value:.{decimals}f} ± {self.error:.{decimals}f}"


def bootstrap(
    statistic: Callable[[Tensor], Tensor], n: int, n_bootstrap: int, seed: int
) -> Estimate:
    """The statistic of all `n` samples and its standard deviation over resampled indices.

    `statistic` maps indices into the samples to a scalar. Without replicas the error is NaN.

    Reference: Efron (1979), Bootstrap methods: another look at the jackknife,
        doi:10.1214/aos/1176344552.
    """
    generator = torch.Generator().manual_seed(seed)
    value = float(statistic(torch.arange(n)))
    replicas = [
        float(statistic(torch.randint(n, (n,), generator=generator))) for _ in range(n_bootstrap)
    ]
    error = (
        float(torch.tensor(replicas, dtype=torch.float64).std()) if n_bootstrap > 1 else math.nan
    )
    return Estimate(value, error)


def weighted_mean(
    values: Float64[Tensor, "batch"],
    weights: Float64[Tensor, "batch"] | None = None,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> Estimate:
    """The self-normalised mean sum(w f) / sum(w), with its bootstrap error.

    Samples of zero weight do not count, whatever their value: it may be infinite.
    """
    if weights is None:
        weights = torch.ones_like(values)
    products = torch.where(weights > 0, values, 0.0) * weights
    return bootstrap(
        lambda index: products[index].sum() / weights[index].sum(), len(values), n_bootstrap, seed
    )


def log_mean_exp(
    log_values: Float64[Tensor, "batch"], n_bootstrap: int = 200, seed: int = 0
) -> Estimate:
    """log of the mean of exp(log_values), with its bootstrap error."""
    shift = log_values.max()
    if not torch.isfinite(shift):
        return Estimate(float(shift), math.nan)
    scaled = (log_values - shift).exp()
    estimate = bootstrap(
        lambda index: scaled[index].mean().log(), len(log_values), n_bootstrap, seed
    )
    return Estimate(estimate.value + float(shift), estimate.error)
