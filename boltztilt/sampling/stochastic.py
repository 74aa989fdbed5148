"""Stochastic transport: the flow, taken back again and again by fresh noise.

Where a field is the conditional mean b_t(x) = E[x1 - x0 | x_t = x] of independent pairs, its flow
carries the law of x_t = (1-t) x0 + t x1 to any later time, and adding noise to a structure carries
it to any earlier one. Alternating the two keeps all of these laws, and errors that the flow has
made are forgotten with the noise: the end points are far closer to the target than those of the
flow alone, but have no density.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from boltztilt.sampling.base import Gaussian
from boltztilt.sampling.flow import Velocity, runge_kutta

MOST_NOISE = 10.0
LEAST_NOISE = 0.02
"""Ratios (1-t)/t of noise to signal between which noise is added. Before and after, the flow alone
is exact enough: hardly anything is decided yet, or hardly anything is left to decide."""

STEPS_BEFORE = 2
STEPS_AFTER = 1
"""Runge-Kutta steps of the flow before the first round and after the last."""


def stochastic_flow(
    velocity: Velocity,
    base: Gaussian,
    starts: Float[Tensor, "batch atoms dims"],
    seeds: list[int],
    n_rounds: int,
) -> Float[Tensor, "batch atoms dims"]:
    """End points of the flow from base draws, with `n_rounds` rounds of noise on the way.

    The ratio of noise to signal falls by a factor r in every round: noise raises it r-fold, and one
    Runge-Kutta step of the flow divides it by r². For many rounds that is the reverse-time
    diffusion dx = [b - (x - t b)/t] dt + sqrt(2 (1-t)/t) dW, whose relative entropy to the target
    is at most ∫ t/(1-t) E|b̂ - b|² dt for a field b̂ (in units of the base).

    Args:
        velocity: the conditional mean of independent pairs; an aligned coupling, or training by
            likelihood, gives fields whose flow has no known noise to go with it.
        seeds: of the noise, one for each structure.

    References:
        Albergo, Boffi, Vanden-Eijnden (2023), Stochastic interpolants, section 2,
        https://arxiv.org/abs/2303.08797
        Karras et al. (2022), Elucidating the design space of diffusion-based generative models,
        algorithm 2 (noise added between steps of the flow), https://arxiv.org/abs/2206.00364
    """
    times = round_times(n_rounds)
    noise = _noise(base, seeds, n_rounds, starts)
    with torch.no_grad():
        before = torch.linspace(0, float(times[0]), STEPS_BEFORE + 1, dtype=torch.float64)
        positions = runge_kutta(velocity, None, starts, before).positions
        for (now, later), fresh in zip(pairwise(times), noise, strict=True):
            earlier = earlier_time(now, later)
            positions = with_noise(positions, float(now), float(earlier), fresh)
            step = torch.stack([earlier, later])
            positions = runge_kutta(velocity, None, positions, step).positions
        after = torch.linspace(float(times[-1]), 1, STEPS_AFTER + 1, dtype=torch.float64)
        return runge_kutta(velocity, None, positions, after).positions


def round_times(n_rounds: int) -> Float64[Tensor, "times"]:
    """Times between rounds, at which the ratio of noise to signal falls geometrically."""
    if n_rounds < 1:
        raise ValueError(f"n_rounds is {n_rounds}; stochastic sampling needs at least one round")
    logarithms = torch.linspace(
        math.log(MOST_NOISE), math.log(LEAST_NOISE), n_rounds + 1, dtype=torch.float64
    )
    return 1 / (1 + logarithms.exp())


def earlier_time(now: Tensor, later: Tensor) -> Tensor:
    """The time before `now` whose ratio of noise to signal is as far from it as that of `later`."""
    at_now, at_later = (1 - now) / now, (1 - later) / later
    return 1 / (1 + at_now.square() / at_later)


def with_noise(
    positions: Float[Tensor, "batch atoms dims"],
    time: float,
    earlier: float,
    noise: Float[Tensor, "batch atoms dims"],
) -> Float[Tensor, "batch atoms dims"]:
    """Structures of the law of x_t carried to that of an earlier time by a draw of the base."""
    shrink = earlier / time
    variance = (1 - earlier) ** 2 - (shrink * (1 - time)) ** 2
    return shrink * positions + math.sqrt(variance) * noise


def _noise(
    base: Gaussian, seeds: list[int], n_rounds: int, like: Tensor
) -> tuple[Float[Tensor, "batch atoms dims"], ...]:
    """Draws of the base for every round, each structure's from its own seed."""
    draws = [base.sample(n_rounds, torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws, 1).to(like).unbind(0)
