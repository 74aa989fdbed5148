"""The losses of single updates, in shares that threads work on side by side, and their gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from boltztilt.energy import Potential
from boltztilt.hardware import fast_products
from boltztilt.networks.precision import in_precision
from boltztilt.parallel import in_threads, structures_per_share
from boltztilt.sampling.flow import Rates, Velocity
from boltztilt.systems.system import System
from boltztilt.tilt.interpolant import Bridge
from boltztilt.tilt.ladder import Rung
from boltztilt.tilt.recipe import Recipe
from boltztilt.tilt.regression import (
    anchor_loss,
    draw_bridge,
    draw_grid,
    likelihood_loss,
    matching_loss,
    path_loss,
    path_slopes,
    shortened,
    tilting_loss,
)

EVALUATIONS_PER_STEP = 10
"""About how many evaluations of the field autograd keeps for a step with its log-density."""


class Share(NamedTuple):
    """One part of a loss: its factor and how it is computed."""

    factor: float
    loss: partial[Tensor]


@dataclass
class Losses:
    """What the losses of all stages need; each draws its own batch.

    Attributes:
        velocity, rates: of the field that is trained.
        old_velocity: of the field that it started from.
        regressed, old_regressed: both in the precision of regressions.
        frozen, frozen_rates: of a copy of the field whose parameters need no gradient.
        n_layers: of the field, on which the memory of its evaluations depends.
    """

    system: System
    potential: Potential
    recipe: Recipe
    velocity: Velocity
    rates: Rates
    old_velocity: Velocity
    frozen: Velocity
    frozen_rates: Rates
    n_layers: int
    generator: torch.Generator
    device: torch.device
    species: Tensor = field(init=False)
    regressed: Velocity = field(init=False)
    old_regressed: Velocity = field(init=False)

    def __post_init__(self) -> None:
        self.species = torch.tensor(self.system.species, device=self.device)
        precision = (self.recipe.precision, self.device)
        self.regressed = in_precision(self.velocity, *precision)
        self.old_regressed = in_precision(self.old_velocity, *precision)

    def tilting(self, rung: Rung) -> list[Share]:
        """The recipe's regression on the weighted particles of a rung."""
        objective = self._objective(rung)
        weights = rung.scaled_rewards if objective == "etm" else rung.weights
        fields = (self.regressed, self.old_regressed)
        return [
            Share(share, partial(tilting_loss, *fields, bridge, self.system.base, rung, objective))
            for share, bridge in self._bridges(rung.particles, weights)
        ]

    def _objective(self, rung: Rung) -> str:
        """The recipe's objective; on the first rung of an aligned coupling always "wfm".

        Tilting starts from the field of the level below. At a = 0 that is the fresh network, exact
        for the independent coupling, but the paths of aligned pairs follow another field.
        """
        first_aligned = rung.a == 0 and self.recipe.coupling == "aligned"
        return "wfm" if first_aligned else self.recipe.objective

    def matching(self, particles: Tensor) -> list[Share]:
        """Flow matching on equally weighted particles."""
        return [
            Share(share, partial(matching_loss, self.regressed, bridge, self.system.base))
            for share, bridge in self._bridges(particles)
        ]

    def likelihood(self, particles: Tensor) -> list[Share]:
        """Mean -log q of some particles, and the distance to the field before this stage."""
        recipe = self.recipe
        n = recipe.likelihood_batch
        chosen = torch.randint(len(particles), (n,), generator=self.generator).to(self.device)
        times = draw_grid(
            recipe.likelihood_solver_steps, recipe.likelihood_grid_power, self.generator
        )
        evaluations = EVALUATIONS_PER_STEP * recipe.likelihood_solver_steps * self.n_layers
        size = structures_per_share(n, self.system.n_atoms, self.device, evaluations)
        if recipe.likelihood_forces:
            return self._along_paths(particles[chosen], size, times) + self._anchors(particles)
        fields = (self.velocity, self.rates)
        losses = [
            Share(
                len(part) / n,
                partial(likelihood_loss, *fields, particles[part], self.system.base, times),
            )
            for part in chosen.split(size)
        ]
        return losses + self._anchors(particles)

    def _along_paths(self, batch: Tensor, size: int, times: Tensor) -> list[Share]:
        """Mean -log q of a batch in shares of `size`, with its gradient along paths."""
        forces = self.potential.energy_and_force(batch)[1]
        fields, given = (self.frozen, self.frozen_rates), (self.system.base, times)
        tasks = [
            partial(path_slopes, *fields, *part, *given)
            for part in zip(batch.split(size), forces.split(size), strict=True)
        ]
        with fast_products():
            losses, slopes = map(torch.cat, zip(*in_threads(tasks, self.device), strict=True))
        parts = (values.split(size) for values in (batch, losses, shortened(slopes)))
        return [
            Share(
                len(part) / len(batch), partial(path_loss, self.velocity, part, loss, slope, times)
            )
            for part, loss, slope in zip(*parts, strict=True)
        ]

    def _anchors(self, particles: Tensor) -> list[Share]:
        """The distance to the field before this stage, where the recipe wants it."""
        strength = self.recipe.likelihood_anchor
        if strength == 0:
            return []
        fields = (self.velocity, self.old_velocity)
        noise = self.recipe.smallest_noise
        return [
            Share(share * strength, partial(anchor_loss, *fields, bridge, self.system.base, noise))
            for share, bridge in self._bridges(particles, uniform_times=0)
        ]

    def _bridges(
        self,
        particles: Tensor,
        weights: Tensor | None = None,
        uniform_times: int | None = None,
    ) -> list[tuple[float, Bridge]]:
        """The batch of one update in parts for the workers, with their shares of the batch.

        Parts hold points of like times, so that layers which act at some times only can be left out
        of the others.
        """
        whole = draw_bridge(
            particles,
            torch.ones(len(particles), device=self.device) if weights is None else weights,
            self.system.base,
            self.species,
            self.system.potential.mirror_symmetric,
            self.recipe,
            self.generator,
            self.recipe.uniform_times if uniform_times is None else uniform_times,
        )
        n = self.recipe.batch_size
        size = structures_per_share(n, self.system.n_atoms, self.device, self.n_layers)
        return [(len(part.times) / n, part) for part in whole.in_order().split(size)]


def add_gradients(
    shares: Sequence[Share], parameters: Sequence[nn.Parameter], device: torch.device
) -> float:
    """The sum of all shares, whose gradient is added to that of the parameters."""
    tasks = [partial(_gradient, share, parameters) for share in shares]
    total = 0.0
    with fast_products():
        for value, gradients in in_threads(tasks, device):
            total += value
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    return total


def _gradient(share: Share, parameters: Sequence[nn.Parameter]) -> tuple[float, list[Tensor]]:
    """A part of the loss and its gradient, zero for parameters that it does not depend on."""
    with torch.enable_grad():
        loss = share.factor * share.loss()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return float(loss.detach()), list(gradients)
