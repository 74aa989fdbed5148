"""Particles that stand for a tilted law: rollouts of the field, rejuvenated and reweighted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from boltztilt.energy import CountedPotential, TiltedPotential, relative_reward
from boltztilt.hardware import fast_products
from boltztilt.parallel import in_threads, structures_per_share
from boltztilt.sampling.base import Gaussian
from boltztilt.sampling.flow import integrate, warped_grid
from boltztilt.sampling.mcmc import hmc, mala, random_walk
from boltztilt.sampling.resampling import systematic_resampling
from boltztilt.sampling.transport import FieldRates

LEAPFROG_STEPS = 20


@dataclass
class Chains:
    """Markov chains that keep their step size from call to call.

    Attributes:
        kind: "mala", "hmc", "random_walk" or "none" (positions are returned as they are).
        step_size: a length, adapted at every call.
    """

    potential: CountedPotential
    base: Gaussian
    kind: str
    step_size: float
    generator: torch.Generator

    def run(
        self,
        positions: Float[Tensor, "batch atoms dims"],
        a: float,
        n_steps: int,
        n_leapfrog: int = LEAPFROG_STEPS,
    ) -> tuple[Float[Tensor, "batch atoms dims"], float]:
        """The positions after `n_steps` at the law rho_a, and the mean acceptance.

        Steps of "hmc" are leapfrog steps, in trajectories of `n_leapfrog`: a step of any kind costs
        one evaluation of the energy.
        """
        if self.kind == "none" or n_steps == 0:
            return positions, 0.0
        tilted = TiltedPotential(self.potential, self.base, a)
        start = (tilted, positions)
        if self.kind == "hmc":
            n_trajectories = -(-n_steps // n_leapfrog)
            state = hmc(
                *start,
                n_trajectories,
                self.step_size,
                n_leapfrog,
                self.generator,
                scale=self.base.mode_scale,
            )
        else:
            kernel = mala if self.kind == "mala" else random_walk
            state = kernel(*start, n_steps, self.step_size, self.generator)
        self.step_size = min(state.step_size, self.base.std)
        return state.positions, state.acceptance


def rollouts(
    field: FieldRates,
    base: Gaussian,
    n: int,
    n_steps: int,
    generator: torch.Generator,
    with_density: bool,
    device: torch.device,
) -> tuple[Float[Tensor, "batch atoms dims"], Float64[Tensor, "batch"]]:
    """End points of the flow from fresh base draws, and their log-densities (zero without)."""
    starts = base.sample(n, generator).to(device)
    fill = field.fill if with_density else 1
    size = structures_per_share(n, base.n_atoms, device, fill)
    times = warped_grid(n_steps)
    tasks = [partial(integrate, field, part, times, with_density) for part in starts.split(size)]
    with fast_products():
        results = list(in_threads(tasks, device))
    change = torch.cat([result.log_density_change for result in results])
    return torch.cat([result.positions for result in results]), base.log_density(starts) + change


def rewards(
    potential: CountedPotential, base: Gaussian, positions: Float[Tensor, "batch atoms dims"]
) -> Float64[Tensor, "batch"]:
    """r(x) = -U(x) - log rho_0(x); -inf where the energy or the position is not finite."""
    reward = relative_reward(potential.energy(positions), base, positions)
    return torch.where(torch.isfinite(reward), reward, -torch.inf)


def resample(
    weights: Float64[Tensor, "batch"], generator: torch.Generator
) -> Int64[Tensor, "batch"]:
    """Indices of as many particles, drawn by weight with systematic resampling."""
    chosen = systematic_resampling(weights.double().cpu()[None], len(weights), generator)[0]
    return chosen.to(weights.device)
