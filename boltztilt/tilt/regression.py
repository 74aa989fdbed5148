"""The losses of one update: regression on the rung's particles, flow matching, likelihood."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from boltztilt.sampling.base import Gaussian
from boltztilt.sampling.flow import Rates, Velocity, runge_kutta, warped_grid
from boltztilt.tilt.coupling import COUPLINGS
from boltztilt.tilt.interpolant import Bridge, Pairs, draw_times, interpolate, stratified
from boltztilt.tilt.ladder import Rung
from boltztilt.tilt.objectives import explicit_target, implicit_target
from boltztilt.tilt.recipe import Recipe

LONGEST_SLOPE = 1.5
"""In medians of a batch. A few structures of a molecule have slopes so long that they alone make
the noise: shortened, a gradient of alanine dipeptide has fifty times the ratio of signal to noise
(12 batches of 8 structures)."""

GRID_POWERS = 0.2
"""Half the range of powers of `warped_grid` on which likelihoods are integrated while training."""


def draw_bridge(
    particles: Float[Tensor, "batch atoms dims"],
    weights: Float[Tensor, "batch"],
    base: Gaussian,
    species: Tensor,
    mirror: bool,
    recipe: Recipe,
    generator: torch.Generator,
    uniform_times: int,
) -> Bridge:
    """Points on the paths between fresh base draws and particles drawn with replacement.

    Of the recipe's times per pair, `uniform_times` are uniform and their errors count fully.
    """
    n_pairs = recipe.batch_size // recipe.times_per_pair
    chosen = torch.randint(len(particles), (n_pairs,), generator=generator).to(particles.device)
    starts = base.sample(n_pairs, generator).to(particles)
    ends = COUPLINGS[recipe.coupling](starts, particles[chosen], species, mirror)
    n_late = recipe.times_per_pair - uniform_times
    times = draw_times(n_pairs, n_late, recipe.smallest_noise, generator).to(starts)
    uniform = stratified(n_pairs, uniform_times, generator).to(starts)
    pairs = Pairs(starts, ends, weights[chosen].to(starts))
    factors = torch.cat([torch.ones_like(uniform), times])
    return interpolate(pairs, torch.cat([uniform, times]), factors)


def matching_loss(field: Velocity, bridge: Bridge, base: Gaussian) -> Tensor:
    """Flow matching: mean of |b̂ - İ|² with the bridge's factors, in units of the base's spread."""
    error = base.squared_norm(field(bridge.times, bridge.positions) - bridge.rates)
    return (bridge.factors * error).mean()


def tilting_loss(
    field: Velocity,
    old_field: Velocity,
    bridge: Bridge,
    base: Gaussian,
    rung: Rung,
    objective: str,
) -> Tensor:
    """The loss of a tilt step: "itm", "wfm" or "etm" with the bridge's factors.

    `bridge.weights` are the tilt weights, or the products h r for "etm".
    """
    predicted = field(bridge.times, bridge.positions)
    if objective == "wfm":
        error = bridge.weights * base.squared_norm(predicted - bridge.rates)
        return (bridge.factors * error).mean()
    with torch.no_grad():
        old = old_field(bridge.times, bridge.positions)
    if objective == "itm":
        target = implicit_target(old, predicted, bridge.rates, bridge.weights)
    else:
        baseline = float(rung.scaled_rewards.mean())
        target = explicit_target(old, bridge.rates, bridge.weights, baseline)
    return (bridge.factors * base.squared_norm(predicted - target)).mean()


def draw_grid(n_steps: int, power: float, generator: torch.Generator) -> Float64[Tensor, "times"]:
    """Falling times of a few steps for a likelihood, on `warped_grid` of about the given power.

    The power is drawn anew for each update, so that the field cannot learn to live off the error
    of one grid.
    """
    power += GRID_POWERS * (2 * float(torch.rand(1, generator=generator)) - 1)
    return warped_grid(n_steps, power).flip(0)


def likelihood_loss(
    field: Velocity,
    rates: Rates,
    particles: Float[Tensor, "batch atoms dims"],
    base: Gaussian,
    times: Float64[Tensor, "times"],
) -> Tensor:
    """Mean of -log q(x1), the exact density of the flow, whose minimum is the law of the particles.

    The flow is followed back to the base in Runge-Kutta steps over the given, falling times.

    Reference: R. T. Q. Chen et al. (2018), Neural ordinary differential equations, section 4,
    https://arxiv.org/abs/1806.07366
    """
    backward = runge_kutta(field, rates, particles, times)
    return -(base.log_density(backward.positions) - backward.log_density_change).mean()


def path_slopes(
    frozen: Velocity,
    frozen_rates: Rates,
    particles: Float[Tensor, "batch atoms dims"],
    forces: Float[Tensor, "batch atoms dims"],
    base: Gaussian,
    times: Float64[Tensor, "times"],
) -> tuple[Float64[Tensor, "batch"], Float[Tensor, "batch atoms dims"]]:
    """-log q of each particle, and the slope by z of log p_0(z) - log base(z), for `path_loss`.

    z is the particle carried back to the base, and p_0 the density there of particles of p.

    Args:
        frozen, frozen_rates: the field, none of whose parameters needs a gradient.
        forces: -∇U of the particles, in kT per length.
        times: falling; the flow goes back along them and ahead again.
    """
    with torch.no_grad():
        start = runge_kutta(frozen, None, particles, times).positions
    with torch.enable_grad():
        start.requires_grad_()
        ahead = runge_kutta(frozen, frozen_rates, start, times.flip(0))
        losses = -(base.log_density(start) + ahead.log_density_change)
        (slopes,) = torch.autograd.grad((forces * ahead.positions).sum() + losses.sum(), start)
    return losses.detach(), slopes


def shortened(
    slopes: Float[Tensor, "batch atoms dims"], longest: float = LONGEST_SLOPE
) -> Float[Tensor, "batch atoms dims"]:
    """The slopes, none longer than `longest` times their median length."""
    lengths = slopes.norm(dim=(1, 2), keepdim=True)
    return slopes * (longest * lengths.median() / lengths.clamp(min=1e-30)).clamp(max=1.0)


def path_loss(
    field: Velocity,
    particles: Float[Tensor, "batch atoms dims"],
    losses: Float64[Tensor, "batch"],
    slopes: Float[Tensor, "batch atoms dims"],
    times: Float64[Tensor, "times"],
) -> Tensor:
    """Mean of -log q as in `likelihood_loss`, with a gradient that is less noisy.

    The relative entropy of p to q is that of p_0 to the base. The gradient of
    E[log p_0(z) - log base(z)] by way of z alone has the same mean as that of -log q, and vanishes
    for each particle where q = p. Both hold up to the error of integration, and for slopes that
    are not `shortened`. It needs forces, and no derivative of the divergence by the parameters.

    Args:
        losses, slopes: from `path_slopes`.

    Reference: L. Vaitl et al. (2022), Gradients should stay on path,
        https://arxiv.org/abs/2207.08219
    """
    start = runge_kutta(field, None, particles, times).positions
    along = (slopes * start).sum() / len(particles)
    return losses.mean() + along - along.detach()


def anchor_loss(
    field: Velocity, old_field: Velocity, bridge: Bridge, base: Gaussian, smallest_noise: float
) -> Tensor:
    """Distance between two fields, ∫ |b̂ - b|² / (1-t) dt, at the times of `draw_times`.

    Velocities are in units of the spread of the base, so that the distance is in nats.

    It bounds the relative entropy ∫ t/(1-t) |b̂ - b|² dt and, unlike it, counts early times fully.
    """
    with torch.no_grad():
        old = old_field(bridge.times, bridge.positions)
    error = base.squared_norm(field(bridge.times, bridge.positions) - old)
    return -math.log(smallest_noise) * error.mean()


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
