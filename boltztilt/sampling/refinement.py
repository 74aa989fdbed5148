"""Finishing structures with Hamiltonian Monte Carlo at the target."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from boltztilt.energy import CountedPotential
from boltztilt.sampling.mcmc import hmc
from boltztilt.systems.system import System
from boltztilt.whole_numbers import whole_number

SHORT_TRAJECTORY = 3
"""Leapfrog steps of the trajectories that bring energies down."""

LONG_TRAJECTORY = {"isotropic": 17, "bonds": 55}
"""Those of the trajectories that carry structures far, by the kind of the base. Measured on LJ-55,
where 200 steps of MALA leave four times the energy W2, and on alanine dipeptide: stiff bonds keep
steps short, and torsions are slow."""

SHORT_SHARE = {"isotropic": 1 / 3, "bonds": 1 / 10}
"""Share of the steps that go to short trajectories, by the kind of the base."""


SMALL_SHARE, SMALLER = 1 / 5, 5.0
"""Share of the short trajectories, after two thirds of them, whose steps are smaller, and by what
factor: atoms that stand too near for the step that suits all others are rejected for ever."""


class Stage(NamedTuple):
    """Trajectories of a number of leapfrog steps, each the adapted step times `shrink`."""

    n_trajectories: int
    n_leapfrog: int
    shrink: float = 1.0


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
    n_before: int = 0,
) -> Refined:
    """Structures after `n_steps` leapfrog steps in trajectories of growing length.

    The step size, a length, starts from `step_size` (default: base_std / 50) and adapts; each batch
    goes on from that of the one before. `n_before` steps of earlier refinements have used up random
    numbers of the same seed.
    """
    batch_size = whole_number("batch_size", batch_size)
    potential = CountedPotential(system.potential)
    generator = generator_apart(seed, n_before)
    step_size = first_step(system) if step_size is None else step_size
    stages = refinement(n_steps, LONG_TRAJECTORY[system.base_kind], SHORT_SHARE[system.base_kind])
    n_accepted = 0.0
    states = []
    for batch in positions.split(batch_size):
        for n_trajectories, n_leapfrog, shrink in stages:
            settings = (n_trajectories, shrink * step_size, n_leapfrog, generator, shrink == 1.0)
            state = hmc(potential, batch, *settings, scale=system.base.mode_scale)
            batch, step_size = state.positions, state.step_size / shrink
            n_accepted += state.acceptance * n_trajectories * len(batch)
        states.append(state)
    n_proposed = len(positions) * sum(stage.n_trajectories for stage in stages)
    return Refined(
        torch.cat([state.positions for state in states]),
        torch.cat([state.energies for state in states]),
        n_accepted / n_proposed,
        potential.n_energy,
    )


def generator_apart(seed: int, n_before: int = 0) -> torch.Generator:
    """A stream of its own for a seed, with which structures may have been drawn already.

    In the stream of the seed itself the first momenta would repeat the draws of the base, and
    after `n_before` steps of refinement, which are told apart, those of the steps before.
    """
    generator = torch.Generator().manual_seed(seed)
    apart = int(torch.randint(2**62, (), generator=generator))
    return generator.manual_seed(apart + n_before)


def first_step(system: System) -> float:
    """A step of Hamiltonian trajectories, a length, for adaptation to begin with."""
    return system.base_std / 50


def refinement(
    n_steps: int,
    long: int = LONG_TRAJECTORY["isotropic"],
    short_share: float = SHORT_SHARE["isotropic"],
) -> list[Stage]:
    """Stages of Hamiltonian trajectories, `n_steps` leapfrog steps in all.

    A share of the steps goes to short trajectories, some of them with smaller steps; what those of
    `long` steps leave over is one more.
    """
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}; refine with at least 1 step")
    n_short = int(n_steps * short_share) // SHORT_TRAJECTORY
    left = n_steps - n_short * SHORT_TRAJECTORY
    n_small = int(n_short * SMALL_SHARE)
    n_first = (2 * n_short) // 3 if n_small else n_short
    stages = [
        Stage(n_first, SHORT_TRAJECTORY),
        Stage(n_small, SHORT_TRAJECTORY, 1 / SMALLER),
        Stage(n_short - n_first - n_small, SHORT_TRAJECTORY),
        Stage(left // long, long),
        Stage(1, left % long),
    ]
    return [stage for stage in stages if stage.n_trajectories > 0 and stage.n_leapfrog > 0]
