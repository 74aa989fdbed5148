"""Chains carried from the Gaussian base to the target through the tilted family."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from boltztilt.energy import Potential, TiltedPotential, relative_reward
from boltztilt.sampling.base import Gaussian
from boltztilt.sampling.mcmc import hmc
from boltztilt.tilt.schedule import choose_step


class Annealed(NamedTuple):
    """Chains at the target, the step size they end with, and log Z from each group of chains."""

    positions: Float[Tensor, "chains atoms dims"]
    log_z: Float64[Tensor, "groups"]
    step_size: float
    tilts: list[float]


def anneal(
    potential: Potential,
    base: Gaussian,
    n_chains: int,
    generator: torch.Generator,
    n_groups: int = 1,
    cess: float = 0.9,
    n_steps: int = 10,
    n_leapfrog: int = 5,
    progress: Callable[[float], None] | None = None,
) -> Annealed:
    """Chains of U_a = -(1 - a) log rho_0 + a U as a goes from 0 to 1.

    Each rung weighs the chains by exp(h r), with h chosen so that the conditional effective
    sample size is `cess`; resamples within each group; and moves them by `n_steps` Hamiltonian
    trajectories. log Z is the sum of the rungs' log mean weights; the groups are independent but
    for the shared choice of h. `progress` is called with a, on a logarithmic scale from 0 to 1.

    Reference: Del Moral, Doucet, Jasra (2006), Sequential Monte Carlo samplers,
        doi:10.1111/j.1467-9868.2006.00553.x; Zhou, Johansen, Aston (2016) for the choice of h,
        doi:10.1080/10618600.2015.1060885.
    """
    if n_chains % n_groups:
        raise ValueError(f"{n_chains} chains do not divide into {n_groups} groups")
    positions = base.sample(n_chains, generator)
    energies = potential.energy(positions)
    log_z = torch.zeros(n_groups, dtype=torch.float64)
    step_size, tilts = 0.2 * base.std, [0.0]
    while tilts[-1] < 1.0:
        rewards = relative_reward(energies, base, positions).nan_to_num(nan=-math.inf)
        step = choose_step(rewards, 1.0 - tilts[-1], cess)
        tilts.append(1.0 if step >= 1.0 - tilts[-1] else tilts[-1] + step)
        log_weights = (step * rewards).reshape(n_groups, -1)
        log_z += log_weights.logsumexp(1) - math.log(log_weights.shape[1])
        positions = positions[resample_groups(log_weights, generator)]
        tilted = TiltedPotential(potential, base, tilts[-1])
        state = hmc(tilted, positions, n_steps, step_size, n_leapfrog, generator)
        positions, step_size = state.positions, state.step_size
        energies = potential.energy(positions)
        if progress is not None:
            progress(1.0 - math.log(tilts[-1]) / math.log(tilts[1]) if tilts[1] < 1.0 else 1.0)
    return Annealed(positions, log_z, step_size, tilts)


def resample_groups(
    log_weights: Float64[Tensor, "groups chains"], generator: torch.Generator
) -> Int64[Tensor, "all"]:
    """Indices drawn by weight within each group, by systematic resampling."""
    n_groups, n = log_weights.shape
    offsets = torch.rand(n_groups, 1, generator=generator, dtype=torch.float64)
    comb = (torch.arange(n, dtype=torch.float64) + offsets) / n
    cumulative = log_weights.softmax(1).cumsum(1)
    chosen = torch.searchsorted(cumulative / cumulative[:, -1:], comb).clamp(max=n - 1)
    return (chosen + n * torch.arange(n_groups)[:, None]).flatten()
