"""A batch carried from the base to the target, or back, by the solver that is asked for."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from boltztilt.networks.compilation import compiled
from boltztilt.sampling.base import Gaussian
from boltztilt.sampling.flow import FlowResult, Rates, Velocity, integrate, integrate_dopri5
from boltztilt.sampling.multistep import (
    MappedField,
    VelocityAndJacobian,
    multistep_flow,
    multistep_origin,
)
from boltztilt.sampling.stochastic import stochastic_flow


class FieldRates(NamedTuple):
    """A field as a solver calls it: its velocity, and that with its divergence or Jacobian.

    Attributes:
        compiled: whether torch.compile was wanted.
        n_layers: its layers, in proportion to which autograd keeps values for its gradient.
        fill: how many times as much memory a pair fills in the divergence as in that of a layer.
    """

    velocity: Velocity
    velocity_and_divergence: Rates
    velocity_and_jacobian: VelocityAndJacobian | None
    compiled: bool
    n_layers: int
    fill: int

    @classmethod
    def of(cls, field: Any, wanted: bool) -> FieldRates:
        """The field through torch.compile if wanted, else as it is."""
        compile = partial(compiled, network=field, wanted=wanted)
        size = getattr(field, "n_layers", 1), getattr(field, "jacobian_fill", 1)
        if getattr(field, "has_jacobian", False):
            velocity, divergence, jacobian = field.with_steps(compile)
            return cls(velocity, divergence, jacobian, wanted, *size)
        divergence = field.velocity_and_divergence
        if not getattr(field, "divergence_by_products", False):
            divergence = compile(divergence)
        return cls(compile(field), divergence, None, wanted, *size)

    def __call__(self, times: Tensor, positions: Tensor) -> Tensor:
        return self.velocity(times, positions)


class Way(NamedTuple):
    """How a batch is carried: over a grid of times, with or without density, by which solver.

    `starts_at_rest` and `length` are what the multistep solver knows of the field, see
    `MappedField`.
    """

    times: Float64[Tensor, "times"]
    with_density: bool
    halves: bool
    solver: str
    backwards: bool
    starts_at_rest: bool
    length: float


def carried(rates: FieldRates, way: Way, device: torch.device, batch: Tensor) -> FlowResult:
    """A batch carried along the way on the device of the field, and brought back."""
    result = _along(rates, way, batch.to(device))
    return FlowResult(result.positions.cpu(), result.log_density_change.cpu())


def _along(rates: FieldRates, way: Way, batch: Tensor) -> FlowResult:
    """End points, and what the density changes by as one follows the way forwards in time."""
    if way.solver == "multistep":
        jacobian = rates.velocity_and_jacobian if way.with_density else None
        field = MappedField(rates.velocity, jacobian, way.starts_at_rest, way.length)
        with torch.no_grad():
            carry = multistep_origin if way.backwards else multistep_flow
            return carry(field, batch, way.times)
    times = way.times.flip(0) if way.backwards else way.times
    if way.solver == "rk4":
        result = integrate(rates, batch, times, way.with_density, way.halves)
    else:
        ends = (float(times[0]), float(times[-1]))
        result = integrate_dopri5(rates, batch, *ends, way.with_density)
    change = result.log_density_change
    return FlowResult(result.positions, -change if way.backwards else change)


def carried_with_noise(
    rates: FieldRates,
    base: Gaussian,
    n_rounds: int,
    device: torch.device,
    batch: Tensor,
    seeds: Tensor,
) -> FlowResult:
    """A batch carried by the stochastic flow on the device of the field, and brought back."""
    ends = stochastic_flow(rates.velocity, base, batch.to(device), seeds.tolist(), n_rounds)
    return FlowResult(ends.cpu(), torch.zeros(len(batch), dtype=torch.float64))
