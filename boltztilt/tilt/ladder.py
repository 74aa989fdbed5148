"""One rung of the tilt ladder: from particles of rho_a to weighted particles of rho_{a+h}."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from boltztilt.sampling.base import Gaussian
from boltztilt.sampling.transport import FieldRates
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
        ancestors: for each of these, the number of the base draw or rollout it descends from.
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
    ancestors: Int64[Tensor, "batch"]
    cess: float
    log_z_change: float
    mean_reward: float
    mean_energy: float
    acceptance: float

    @property
    def new_a(self) -> float:
        """The level after the step."""
        return level_after(self.a, self.step)


def level_after(a: float, step: float) -> float:
    """a + h, exactly one at the end of the ladder."""
    return 1.0 if a + step > 1 - 1e-9 else a + step


def climb(
    field: FieldRates,
    base: Gaussian,
    a: float,
    recipe: Recipe,
    chains: Chains,
    device: torch.device,
    carried: tuple[Float[Tensor, "batch atoms dims"], Int64[Tensor, "batch"]] | None = None,
) -> Rung:
    """The next rung above level `a`, whose step keeps the recipe's conditional ESS.

    `carried` are samples of rho_a, with their ancestors, that take the place of fresh rollouts of
    the field.
    """
    if carried is None:
        particles, log_density = draw_particles(field, base, a, recipe, chains, device)
        ancestors = torch.arange(len(particles), device=device)
    else:
        particles, ancestors = carried
        log_density = base.log_density(particles)
    reward = rewards(chains.potential, base, particles)
    finite = torch.isfinite(reward)
    prior = torch.zeros_like(reward)
    if recipe.exact_weights and a > 0:
        # log rho_a - log q: the weights that repair whatever the field got wrong so far
        prior = base.log_density(particles) + a * reward - log_density
        prior = torch.where(torch.isfinite(prior), prior, -torch.inf)
    step = choose_step(reward, 1.0 - a, recipe.cess, prior)
    scaled = torch.where(finite, step * reward, -torch.inf)
    weights = tilt_weights(prior + scaled)
    n_drawn = recipe.n_particles if recipe.exact_weights else len(reward)
    shares = torch.where(finite, prior, -torch.inf).softmax(0)
    chosen = resample(weights, chains.generator)
    matching, acceptance = chains.run(
        particles[chosen], level_after(a, step), recipe.recentring_steps
    )
    energy = chains.potential.energy(matching).double()
    return Rung(
        a=a,
        step=step,
        particles=particles,
        weights=weights,
        scaled_rewards=scaled,
        matching=matching,
        ancestors=ancestors[chosen],
        cess=conditional_ess(reward, step, prior),
        log_z_change=float(torch.logsumexp(prior + scaled, 0)) - math.log(n_drawn),
        mean_reward=float((shares * torch.where(finite, reward, 0.0)).sum()),
        mean_energy=float(energy[torch.isfinite(energy)].mean()),
        acceptance=acceptance,
    )


def draw_particles(
    field: FieldRates,
    base: Gaussian,
    a: float,
    recipe: Recipe,
    chains: Chains,
    device: torch.device,
) -> tuple[Float[Tensor, "batch atoms dims"], Float64[Tensor, "batch"]]:
    """Samples of rho_a and their log-densities under the law they were drawn from.

    At a = 0 they come from the base, above from the field: rejuvenated by the chains, unless exact
    weights are to repair them. Paths that diverged are left out.
    """
    if a == 0:
        particles = base.sample(recipe.n_particles, chains.generator).to(device)
        return particles, base.log_density(particles)
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
    sound = torch.isfinite(particles).flatten(1).all(dim=1)
    return particles[sound], log_density[sound]
