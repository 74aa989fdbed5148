"""One rung of the tilt ladder: from particles of rho_a to weighted particles of rho_{a+h}."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from boltztilt.sampling.base import Gaussian
from boltztilt.tilt.objectives import tilt_weights
from boltztilt.tilt.population import Chains, resample, rewards, rollouts
from boltztilt.tilt.recipe import Recipe
from boltztilt.tilt.schedule import choose_step, conditional_ess


@dataclass(frozen=True)
class Rung:
    """What the regression of one rung needs, and what it measured.

    Attributes:
        a, step: the old level and h; the new one is a + h.
        particles: samples of rho_a (of the field's own law with exact weights).
        weights: their weights for rho_{a+h}, mean one.
        scaled_rewards: h r of the particles.
        matching: samples of rho_{a+h} for flow matching: resampled particles, rejuvenated.
        cess: conditional ESS of the step.
        log_z_change: log Z_{a+h} - log Z_a (from 0 to a + h with exact weights).
        mean_reward: average of r under rho_a, d log Z / da.
        mean_energy: average of the target's energy over the matching particles, in kT.
        acceptance: of the chains at the new level.
    """

    a: float
    step: float
    particles: Float[Tensor, "batch atoms dims"]
    weights: Float64[Tensor, "batch"]
    scaled_rewards: Float64[Tensor, "batch"]
    matching: Float[Tensor, "batch atoms dims"]
    cess: float
    log_z_change: float
    mean_reward: float
    mean_energy: float
    acceptance: float

    @property
    def new_a(self) -> float:
        """The level after the step, exactly one at the end of the ladder."""
        return 1.0 if self.a + self.step > 1 - 1e-9 else self.a + self.step


def climb(
    field: nn.Module,
    base: Gaussian,
    a: float,
    recipe: Recipe,
    chains: Chains,
    device: torch.device,
) -> Rung:
    """The next rung above level `a`, whose step keeps the recipe's conditional ESS."""
    if a == 0:
        particles = base.sample(recipe.n_particles, chains.generator).to(device)
        log_density = base.log_density(particles)
    else:
        particles, log_density = rollouts(
            field,
            base,
            recipe.n_particles,
            recipe.rollout_steps,
            chains.generator,
            recipe.exact_weights,
            device,
        )
        if not recipe.exact_weights:
            particles, _ = chains.run(particles, a, recipe.recentring_steps)
    sound = torch.isfinite(particles).flatten(1).all(dim=1)  # paths that did not diverge
    particles, log_density = particles[sound], log_density[sound]
    reward = rewards(chains.potential, base, particles)
    prior = torch.zeros_like(reward)
    if recipe.exact_weights and a > 0:
        # log rho_a - log q: the weights that repair whatever the field got wrong so far
        prior = base.log_density(particles) + a * reward - log_density
        prior = torch.where(torch.isfinite(prior), prior, -torch.inf)
    step = choose_step(reward, 1.0 - a, recipe.cess, prior)
    scaled = step * reward
    if not bool(torch.isfinite(reward).all()):
        scaled = torch.where(torch.isfinite(reward), scaled, -torch.inf)
    weights = tilt_weights(prior + scaled)
    n_drawn = recipe.n_particles if recipe.exact_weights else len(reward)
    log_z_change = torch.logsumexp(prior + scaled, 0) - math.log(n_drawn)
    shares = torch.where(torch.isfinite(reward), prior, -torch.inf).softmax(0)
    mean_reward = (shares * torch.where(torch.isfinite(reward), reward, 0.0)).sum()
    matching = resample(particles, weights, chains.generator)
    new_a = 1.0 if a + step > 1 - 1e-9 else a + step
    matching, acceptance = chains.run(matching, new_a, recipe.recentring_steps)
    energy = chains.potential.energy(matching).double()
    return Rung(
        a=a,
        step=step,
        particles=particles,
        weights=weights,
        scaled_rewards=scaled,
        matching=matching,
        cess=conditional_ess(reward, step, prior),
        log_z_change=float(log_z_change),
        mean_reward=float(mean_reward),
        mean_energy=float(energy[torch.isfinite(energy)].mean()),
        acceptance=acceptance,
    )
