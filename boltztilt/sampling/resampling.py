"""Drawing by weight with as little randomness as possible."""

from __future__ import annotations

import torch
from jaxtyping import Float64, Int64
from torch import Tensor


def systematic_resampling(
    weights: Float64[Tensor, "groups batch"], n: int, generator: torch.Generator
) -> Int64[Tensor, "groups n"]:
    """`n` indices for each group: one of weight w, of weights that sum to 1, is drawn n w times.

    n w is rounded up or down at random, so that its mean is kept. Weights need no normalisation.

    Reference: Kitagawa (1996), Monte Carlo filter and smoother, doi:10.2307/1390750.
    """
    offsets = torch.rand(len(weights), 1, generator=generator, dtype=torch.float64)
    comb = (torch.arange(n, dtype=torch.float64) + offsets) / n
    cumulative = weights.cumsum(1)
    chosen = torch.searchsorted(cumulative / cumulative[:, -1:], comb)
    return chosen.clamp(max=weights.shape[1] - 1)
