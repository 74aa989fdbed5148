"""Which solvers a trained field can be sampled by, in how many steps, and at which times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from boltztilt.sampling.flow import warped_grid
from boltztilt.sampling.pace import EARLY_STEPS, paced_grid

SOLVERS = ("multistep", "rk4", "dopri5")

DEFAULT_STEPS = 14
PACED_STEPS = 9
"""Steps of a density where they are placed by a measured pace."""

STEPS_WITHOUT_DENSITY = 8
"""Steps that structures alone need: LJ-55 energies are then off by 0.1 kT, LJ-13 by 0.02 kT."""

MULTISTEP_STEPS = 16
"""Steps of the map whose own density is known. For LJ-55 its overlap with the target is then 0.35
(N = 10,000); 11 steps have 0.25, and 20 no more than 16 (192 structures)."""

STOCHASTIC_ROUNDS = 25
"""Rounds of noise that structures need."""

CONDITIONAL_MEAN = {"coupling": "independent", "likelihood_steps": 0}
"""Entries of the recipes by which a field becomes the mean of x1 - x0 given x_t, x0 independent."""

Metadata = Mapping[str, Any]
"""The record of a training, as `Sampler.metadata`."""


def checked_solver(solver: str | None, has_jacobian: bool) -> str:
    """The solver to use, or a ValueError that says why the one asked for cannot be."""
    if solver is None:
        return "multistep" if has_jacobian else "rk4"
    if solver not in SOLVERS:
        raise ValueError(f"solver {solver!r} is unknown; choose one of {', '.join(SOLVERS)}")
    if solver == "multistep" and not has_jacobian:
        raise ValueError(
            "solver 'multistep' needs the Jacobian of the field, which is at hand for unrolled "
            "fields of alike atoms without a cutoff: use 'rk4'"
        )
    return solver


def check_stochastic(solver: str | None, metadata: Metadata, system: str) -> None:
    """Raises ValueError unless the field is the conditional mean that noise can go with."""
    if solver is not None:
        raise ValueError(
            f"stochastic sampling has its own steps: leave out the solver, not '{solver}'"
        )
    for name, value in _unlike_a_mean(metadata).items():
        raise ValueError(
            f"this field was trained with {name} = {value!r}, and stochastic sampling needs "
            f"{CONDITIONAL_MEAN[name]!r}: train one with `boltztilt train {system} --stochastic "
            f"-o runs/{system}`"
        )


def starts_at_rest(metadata: Metadata) -> bool:
    """Whether the recipe says that x0 alone tells nothing of x1: the field at t = 0 is -x."""
    named = "coupling" in metadata.get("recipe", {})
    return named and not _unlike_a_mean(metadata)


def _unlike_a_mean(metadata: Metadata) -> dict[str, Any]:
    """Entries of the recipe by which the field is no conditional mean of independent pairs."""
    recipe = metadata.get("recipe", {})
    return {
        name: recipe[name]
        for name, wanted in CONDITIONAL_MEAN.items()
        if recipe.get(name, wanted) != wanted
    }


def default_steps(solver: str, with_density: bool, paced: bool) -> int:
    """Steps of a solver unless others are wanted."""
    if solver == "multistep":
        return MULTISTEP_STEPS
    if not with_density:
        return STEPS_WITHOUT_DENSITY
    return PACED_STEPS if paced else DEFAULT_STEPS


def time_grid(n_steps: int, solver: str, pace: Sequence[float] | None) -> Float64[Tensor, "times"]:
    """Times of the solver's steps, at the pace that was measured for the field if one was."""
    if pace is None:
        return warped_grid(n_steps)
    early = EARLY_STEPS if solver == "multistep" else 1.0
    return paced_grid(n_steps, torch.tensor(pace, dtype=torch.float64), early)
