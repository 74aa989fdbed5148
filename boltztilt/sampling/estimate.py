"""Averages with their error bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import scipy.stats
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

MOST_DIGITS = 6
"""Before or behind the decimal point; numbers with errors beyond are printed to four digits."""


LEAST_FOR_TAIL = 100
"""Weights from which the law of the largest of them is fitted."""

LEAST_EXCESS = 1e-6
"""Weights that differ by less, in units of the largest, are equal but for rounding."""


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float

    @classmethod
    def read(cls, entry: Mapping[str, float | None]) -> Estimate:
        """The estimate that a file keeps by name, with null for what was not finite."""
        known = {name: math.nan if number is None else number for name, number in entry.items()}
        return cls(**known)

    def __str__(self) -> str:
        """The value rounded where its error begins, such as `-43.06 ± 0.05`."""
        if math.isnan(self.error):
            return f"{self.value:.4g} ± unknown"
        if not math.isfinite(self.error) or self.error <= 0:
            return f"{self.value:.4g} ± {self.error:.2g}"
        exponent = math.floor(math.log10(self.error))
        if not -MOST_DIGITS <= exponent < MOST_DIGITS:
            return f"{self.value:.4g} ± {self.error:.1g}"
        leading_one = self.error < 2 * 10.0**exponent
        decimals = max(0, -exponent + int(leading_one))
        return f"{self.value:.{decimals}f} ± {self.error:.{decimals}f}"


def bootstrap(
    statistic: Callable[[Tensor], Tensor], n: int, n_bootstrap: int, seed: int
) -> Estimate:
    """The statistic of all `n` samples and its standard deviation over resampled indices.

    `statistic` maps indices into the samples to a scalar. The factor sqrt(n / (n - 1)) makes the
    error of a plain mean unbiased in the square. Without replicas, or of a single sample, the
    error is NaN.

    Reference: Efron (1979), Bootstrap methods: another look at the jackknife,
        doi:10.1214/aos/1176344552.
    """
    generator = torch.Generator().manual_seed(seed)
    value = float(statistic(torch.arange(n)))
    replicas = [
        float(statistic(torch.randint(n, (n,), generator=generator))) for _ in range(n_bootstrap)
    ]
    if n_bootstrap < 2 or n < 2:
        return Estimate(value, math.nan)
    spread = float(torch.tensor(replicas, dtype=torch.float64).std())
    return Estimate(value, spread * math.sqrt(n / (n - 1)))


def weighted_mean(
    values: Float64[Tensor, "batch"],
    weights: Float64[Tensor, "batch"] | None = None,
    n_bootstrap: int = 200,
    seed: int = 0,
    groups: Int64[Tensor, "batch"] | None = None,
) -> Estimate:
    """The self-normalised mean sum(w f) / sum(w), with its bootstrap error.

    Samples of zero weight do not count, whatever their value: it may be infinite. Samples of one
    group may depend on each other; whole groups are then resampled for the error.
    """
    if weights is None:
        weights = torch.ones_like(values)
    products = torch.where(weights > 0, values, 0.0) * weights
    sums, totals = group_sums(products, groups), group_sums(weights, groups)
    return bootstrap(
        lambda index: sums[index].sum() / totals[index].sum(), len(sums), n_bootstrap, seed
    )


def weighted_fraction(
    holds: Bool[Tensor, "batch"],
    weights: Float64[Tensor, "batch"] | None = None,
    groups: Int64[Tensor, "batch"] | None = None,
) -> Estimate:
    """The fraction of samples for which something holds, with the error of `weighted_mean`.

    The error is NaN where it holds for all samples of positive weight, or for none: a state that
    was never seen may still be there.
    """
    found = weighted_mean(holds.double(), weights, groups=groups)
    seen = holds if weights is None else holds[weights > 0]
    return found if seen.any() and not seen.all() else Estimate(found.value, math.nan)


def log_mean_exp(
    log_values: Float64[Tensor, "batch"],
    n_bootstrap: int = 200,
    seed: int = 0,
    groups: Int64[Tensor, "batch"] | None = None,
) -> Estimate:
    """log of the mean of exp(log_values), with its bootstrap error, over groups if given."""
    shift = log_values.max()
    if not torch.isfinite(shift):
        return Estimate(float(shift), math.nan)
    scaled = (log_values - shift).exp()
    sums, sizes = group_sums(scaled, groups), group_sums(torch.ones_like(scaled), groups)
    estimate = bootstrap(
        lambda index: (sums[index].sum() / sizes[index].sum()).log(), len(sums), n_bootstrap, seed
    )
    return Estimate(estimate.value + float(shift), estimate.error)


def pareto_k(log_weights: Float64[Tensor, "batch"]) -> float:
    """Shape k of the generalised Pareto law of the largest weights, 3 sqrt(n) and a fifth at most.

    Moments of order 1/k and above do not exist under that law. Up to 0.7 averages settle; beyond,
    the effective sample size falls as more are drawn. NaN for fewer than 100 weights, and for equal
    ones. For 1,000 weights its own error is about 0.2.

    Reference: A. Vehtari et al. (2024), Pareto smoothed importance sampling, JMLR 25(72), 1-58,
    https://arxiv.org/abs/1507.02646 (with the fit of maximum likelihood).
    """
    finite = log_weights[torch.isfinite(log_weights)]
    if len(finite) < LEAST_FOR_TAIL:
        return math.nan
    n_tail = int(min(len(finite) / 5, 3 * math.sqrt(len(finite))))
    largest = (finite - finite.max()).exp().sort(descending=True).values[: n_tail + 1]
    excess = (largest[:-1] - largest[-1]).numpy()
    if not excess.mean() > LEAST_EXCESS:
        return math.nan
    shape, _, _ = scipy.stats.genpareto.fit(excess / excess.mean(), floc=0)
    return float(shape)


def group_sums(
    values: Float64[Tensor, "batch"], groups: Int64[Tensor, "batch"] | None
) -> Float64[Tensor, "groups"]:
    """The sum over each group; every sample is its own group where none are given."""
    if groups is None:
        return values
    labels, index = groups.unique(return_inverse=True)
    return torch.zeros(len(labels), dtype=values.dtype).index_add(0, index, values)
