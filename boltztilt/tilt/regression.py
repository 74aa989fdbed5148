"""The regression losses of one update, on the rung's particles or by plain flow matching."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from boltztilt.sampling.base import Gaussian
from boltztilt.tilt.coupling import COUPLINGS
from boltztilt.tilt.interpolant import Bridge, Pairs, draw_times, interpolate
from boltztilt.tilt.ladder import Rung
from boltztilt.tilt.objectives import explicit_target, implicit_target, squared_error
from boltztilt.tilt.recipe import Recipe

Velocity = Callable[[Tensor, Tensor], Tensor]


def draw_bridge(
    particles: Float[Tensor, "batch atoms dims"],
    weights: Float[Tensor, "batch"],
    base: Gaussian,
    species: Tensor,
    mirror: bool,
    recipe: Recipe,
    generator: torch.Generator,
) -> Bridge:
    """Points on the paths between fresh base draws and particles drawn with replacement."""
    n_pairs = recipe.batch_size // recipe.times_per_pair
    chosen = torch.randint(len(particles), (n_pairs,), generator=generator).to(particles.device)
    starts = base.sample(n_pairs, generator).to(particles)
    ends = COUPLINGS[recipe.coupling](starts, particles[chosen], species, mirror)
    times = draw_times(n_pairs, recipe.times_per_pair, recipe.smallest_noise, generator)
    return interpolate(Pairs(starts, ends, weights[chosen].to(starts)), times.to(starts))


def matching_loss(field: Velocity, bridge: Bridge) -> Tensor:
    """Flow matching: mean of t |b̂ - İ|²."""
    error = squared_error(field(bridge.times, bridge.positions), bridge.rates)
    return (bridge.times * error).mean()


def tilting_loss(
    field: Velocity, old_field: nn.Module, bridge: Bridge, rung: Rung, objective: str
) -> Tensor:
    """The loss of a tilt step: "itm", "wfm" or "etm" with likelihood-weighted times.

    `bridge.weights` are the tilt weights, or the products h r for "etm".
    """
    predicted = field(bridge.times, bridge.positions)
    if objective == "wfm":
        error = bridge.weights * squared_error(predicted, bridge.rates)
        return (bridge.times * error).mean()
    with torch.no_grad():
        old = old_field(bridge.times, bridge.positions)
    if objective == "itm":
        target = implicit_target(old, predicted, bridge.rates, bridge.weights)
    else:
        baseline = float(rung.scaled_rewards.mean())
        target = explicit_target(old, bridge.rates, bridge.weights, baseline)
    return (bridge.times * squared_error(predicted, target)).mean()


def refuse_explicit_on_singular_core(rung: Rung) -> None:
    """Raises where explicit tilt matching cannot start: rewards without a usable mean.

    The reward of a singular core has no mean under the base. In a sample this shows as a few
    configurations that carry most of the sum of |r|.
    """
    reward = rung.scaled_rewards / rung.step
    magnitude = (reward - reward.median()).abs()
    finite = bool(torch.isfinite(reward).all())
    share = float(magnitude.max() / magnitude.sum()) if finite else 1.0
    if rung.a == 0 and share > 0.1:
        raise ValueError(
            "explicit tilt matching (objective = 'etm') needs a finite mean reward at a = 0, but "
            f"one of {len(reward)} base samples carries {100 * share:.0f} % of the total |r|: the "
            "energy has a singular core, as r^-12 does; use objective = 'itm' or 'wfm', whose "
            "weights exp(h r) are bounded"
        )
