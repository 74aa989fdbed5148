"""Finishing structures with Hamiltonian Monte Carlo at the target."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from boltztilt.energy import CountedPotential
from boltztilt.sampling.mcmc import hmc
from boltztilt.systems.system import System

SHORT_TRAJECTORY, LONG_TRAJECTORY = 3, 17
"""Leapfrog steps: measured on LJ-55, where 200 steps of MALA leave four times the energy W2."""

SHORT_SHARE = 1 / 3
"""Share of the steps that go to short trajectories, which bring energies down."""

LONG_TRAJECTORY_OF_BONDS, SHORT_SHARE_OF_BONDS = 55, 1 / 10
"""The same for bases that hold bonds together: stiff bonds keep steps short, torsions are slow."""


class Refined(NamedTuple):
    """Structures after refinement, and what it took."""

    positions: Float[Tensor, "batch atoms dims"]
    energies: Float64[Tensor, "batch"]
    acceptance: float
    n_energy: int


def refined(
    system: System,
    positions: Float[Tensor, "batch atoms dims"],
    n_steps: int,
    seed: int = 0,
    step_size: float | None = None,
    batch_size: int = 4096,
) -> Refined:
    """Structures after `n_steps` leapfrog steps in trajectories of growing length.

    The step size, a length, starts from `step_size` (default: base_std / 50) and adapts; each batch
    goes on from that of the one before.
    """
    potential = CountedPotential(system.potential)
    generator = torch.Generator().manual_seed(seed)
    step_size = first_step(system) if step_size is None else step_size
    share = SHORT_SHARE_OF_BONDS if system.base_kind == "bonds" else SHORT_SHARE
    stages = refinement(n_steps, long_trajectory(system), share)
    n_accepted = 0.0
    states = []
    for batch in positions.split(batch_size):
        for n_trajectories, n_leapfrog in stages:
            settings = (n_trajectories, step_size, n_leapfrog, generator)
            state = hmc(potential, batch, *settings, scale=system.base.mode_scale)
            batch, step_size = state.positions, state.step_size
            n_accepted += state.acceptance * n_trajectories * len(batch)
        states.append(state)
    n_proposed = len(positions) * sum(number for number, _ in stages)
    return Refined(
        torch.cat([state.positions for state in states]),
        torch.cat([state.energies for state in states]),
        n_accepted / n_proposed,
        potential.n_energy,
    )


def first_step(system: System) -> float:
    """A step of Hamiltonian trajectories, a length, for adaptation to begin with."""
    return system.base_std / 50


def long_trajectory(system: System) -> int:
    """Leapfrog steps of the trajectories that carry structures far at the target."""
    return LONG_TRAJECTORY_OF_BONDS if system.base_kind == "bonds" else LONG_TRAJECTORY


def refinement(
    n_steps: int, long: int = LONG_TRAJECTORY, short_share: float = SHORT_SHARE
) -> list[tuple[int, int]]:
    """Numbers of Hamiltonian trajectories and their leapfrog steps, `n_steps` in all.

    A share of the steps goes to short trajectories; what those of `long` steps leave over is one
    more.
    """
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}; refine with at least 1 step")
    n_short = int(n_steps * short_share) // SHORT_TRAJECTORY
    left = n_steps - n_short * SHORT_TRAJECTORY
    stages = [
        (n_short, SHORT_TRAJECTORY),
        (left // long, long),
        (1, left % long),
    ]
    return [(number, length) for number, length in stages if number > 0 and length > 0]
