"""Choice of the tilt step h from the rewards at hand, without any divergence."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor

SMALLEST_STEP = 1e-30
LEAST_REST = 1e-6
"""Of the tilt. Where so little of it changes the law of the particles, the target has none."""
N_BISECTIONS = 80


def conditional_ess(
    rewards: Float64[Tensor, "batch"],
    step: float,
    log_weights: Float64[Tensor, "batch"] | None = None,
) -> float:
    """Fraction (Σ W e^{hr})² / Σ W e^{2hr} that a step h keeps; W are prior weights, sum one.

    Non-finite rewards count as -inf: they are lost at any step.

    Reference: Y. Zhou, A. M. Johansen, J. A. D. Aston (2016), Toward automatic model comparison,
    section 3.3.2, https://arxiv.org/abs/1303.3123
    """
    prior = torch.zeros_like(rewards) if log_weights is None else log_weights
    prior = prior.log_softmax(dim=0)
    finite = torch.isfinite(rewards)
    tilted = torch.where(finite, step * torch.where(finite, rewards, 0.0), -math.inf)
    first = torch.logsumexp(prior + tilted, dim=0)
    second = torch.logsumexp(prior + 2 * tilted, dim=0)
    return float(torch.exp(2 * first - second))


def choose_step(
    rewards: Float64[Tensor, "batch"],
    largest: float,
    target: float,
    log_weights: Float64[Tensor, "batch"] | None = None,
) -> float:
    """The largest step h <= `largest` that keeps the conditional ESS at `target`, by bisection.

    The bisection runs on a logarithmic scale because first steps off a Gaussian base are tiny.

    Raises:
        ValueError: even a vanishing step loses too many samples (too few finite rewards), or the
            last of a tilt changes the law without end, since exp(-U) has no finite integral.
    """
    if conditional_ess(rewards, largest, log_weights) >= target:
        return largest
    low, high = math.log(SMALLEST_STEP), math.log(largest)
    if not conditional_ess(rewards, SMALLEST_STEP, log_weights) >= target:  # also where it is NaN
        n_finite = int(torch.isfinite(rewards).sum())
        raise ValueError(
            f"no tilt step keeps a conditional ESS of {target}: {n_finite} of {len(rewards)} "
            "rewards are finite; use a wider base or check the potential for NaN"
        )
    if largest < LEAST_REST:
        raise ValueError(
            f"the particles spread without end as the tilt approaches 1 (only {largest:.1g} is "
            "left): exp(-U) has no finite integral; add a trap or walls that hold the atoms"
        )
    for _ in range(N_BISECTIONS):
        middle = (low + high) / 2
        if conditional_ess(rewards, math.exp(middle), log_weights) >= target:
            low = middle
        else:
            high = middle
    return math.exp(low)
