"""Multistep solver whose own map has an exact density: one evaluation of the field in each step.

Solvers of the flow give log q up to their error. The map from the start to the end of a multistep
solver, in contrast, has a density of its own, whatever its steps are,

    log q(x_N) = log q_0(x_0) - log |det dx_N/dx_0|,

and the Jacobian of the map follows from those of the field at the steps. Where the field has them
at hand, the law of the samples is known to rounding, from fewer evaluations than a solver takes
whose errors must be small.

The steps are those of Adams and Bashforth for y = x / s(t), s² = t² + (1-t)², in which the flow
between two equal Gaussians is at rest,

    y_{k+1} = y_k + sum_i w_ki g_{k-i},    g = dy/dt = (b - x dlog s/dt) / s.

A map that is one to one has a determinant that vanishes nowhere, and, as the flow it stands for, a
positive one; the converse holds for maps that leave nothing at infinity (Hadamard). Where the map
folds, a point has several origins, and the signs of their determinants add up to one: sums of
sign * weight stay exact. Ends with a negative determinant are few and are given no weight, so that
sums err by the weight that these would have had, and no more.

References:
    E. Hairer, S. P. Nørsett, G. Wanner, Solving Ordinary Differential Equations I, Springer (1993),
    III.5 (variable steps).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from boltztilt.geometry import centring_matrix
from boltztilt.hardware import one_thread
from boltztilt.sampling.flow import FlowResult, Velocity, resting_rate, runge_kutta

ORDERS = (2, 3)
"""The weights are the mean of those of these orders: the third alone is not stable where fields are
stiff, the second alone contracts too much."""

MOST_ITERATIONS = 20
"""Of Newton's method; a handful is the rule."""

LARGEST_MOVE = 0.1
"""Newton's method moves no coordinate by more at once, in units of the field's length."""

SMALL_MOVE, SMALLEST_MOVE = 1e-4, 1e-5
"""A path is found where Newton's method moves no coordinate by more than the first, in the same
units; it stops where none moves by more than the second, or a step after all have been found."""

VelocityAndJacobian = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Velocity and its derivatives `(batch, coordinates, coordinates)` at times `(batch,)` and
positions."""


class Step(NamedTuple):
    """x_{k+1} as a sum over what is known: positions and velocities, the latest first."""

    time: float
    of_positions: list[float]
    of_velocities: list[float]

    def __call__(self, positions: list[Tensor], velocities: list[Tensor]) -> Tensor:
        """The next position, from all before, or its rate from theirs."""
        known = zip(self.of_positions, reversed(positions), strict=False)
        moved = zip(self.of_velocities, reversed(velocities), strict=False)
        return sum((factor * value for factor, value in (*known, *moved)), torch.zeros(()))


def multistep(times: Float64[Tensor, "times"]) -> list[Step]:
    """The steps over a grid of times; the first is of order one, the second of order two."""
    ends = [float(time) for time in times]
    return [_step(ends[: k + 1], ends[k + 1]) for k in range(len(ends) - 1)]


def _step(known: list[float], stop: float) -> Step:
    """The step from the last of the known times."""
    used = min(len(known), max(ORDERS))
    weights = torch.zeros(used, dtype=torch.float64)
    for order in ORDERS:
        of_order = adams_bashforth(known[-order:], stop)
        weights[: len(of_order)] += of_order / len(ORDERS)
    nodes = known[-used:][::-1]
    scale = _scale(stop)
    of_velocities = [scale * float(w) / _scale(t) for w, t in zip(weights, nodes, strict=True)]
    of_positions = [-c * resting_rate(t) for c, t in zip(of_velocities, nodes, strict=True)]
    of_positions[0] += scale / _scale(nodes[0])
    return Step(nodes[0], of_positions, of_velocities)


def adams_bashforth(known: list[float], stop: float) -> Float64[Tensor, "known"]:
    """Weights of the rates at known times, the latest first, in the step from the last of them.

    They are the integrals of the polynomials that are one at one of these times, and zero at the
    others.
    """
    nodes = torch.tensor(known[::-1], dtype=torch.float64)
    start, powers = known[-1], torch.arange(len(known), dtype=torch.float64).unsqueeze(1)
    integrals = (stop - start) ** (powers + 1) / (powers + 1)
    return torch.linalg.solve((nodes - start) ** powers, integrals).squeeze(1)


def _scale(time: float) -> float:
    """s(t), the standard deviation on the way between two unit Gaussians."""
    return math.hypot(time, 1 - time)


class MappedField(NamedTuple):
    """The field as the steps call it.

    Attributes:
        velocity: the velocity, which has no mean.
        rates: the velocity with its Jacobian, by which densities come.
        starts_at_rest: take -x at t = 0, without a call of the network: that is the mean of x1 - x0
            given x0 where pairs are independent.
        length: a typical one of the system, such as the spread of its base.
    """

    velocity: Velocity
    rates: VelocityAndJacobian | None = None
    starts_at_rest: bool = False
    length: float = 1.0

    def at(self, time: float, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """The velocity at a time, and its Jacobian where `rates` are given."""
        if time == 0 and self.starts_at_rest:
            return -positions, None if self.rates is None else -centring_matrix(positions)
        times = positions.new_full((len(positions),), time)
        if self.rates is None:
            return self.velocity(times, positions), None
        return self.rates(times, positions)


def multistep_flow(
    field: MappedField,
    positions: Float[Tensor, "batch atoms dims"],
    times: Float64[Tensor, "times"],
) -> FlowResult:
    """Positions of zero mean carried over the grid of times, with the change of their log-density.

    Without `rates` of the field the change is zero; where the map folds, it is infinite.
    """
    path, velocities = [positions], list[Tensor]()
    centring = centring_matrix(positions)
    tangents, tangent_rates = [centring.expand(len(positions), -1, -1)], list[Tensor]()
    for step in multistep(times):
        moved, jacobian = field.at(step.time, path[-1])
        velocities.append(moved)
        if jacobian is not None:
            tangent_rates.append(jacobian @ tangents[-1])
            tangents.append(step(tangents, tangent_rates))
        path.append(step(path, velocities))
        for known in (path, velocities, tangents, tangent_rates):
            del known[: -max(ORDERS)]
    if field.rates is None:
        return FlowResult(path[-1], torch.zeros(len(positions), dtype=torch.float64))
    return FlowResult(path[-1], -_log_determinant(tangents[-1], centring))


def multistep_origin(
    field: MappedField,
    ends: Float[Tensor, "batch atoms dims"],
    times: Float64[Tensor, "times"],
) -> FlowResult:
    """What `multistep_flow` carries to the given ends, with the change of log-density on the way.

    Newton's method for all points of the path at once, from the path of the flow backwards. A
    structure whose path is not found within `MOST_ITERATIONS` has NaN for its change, and so has
    one whose path begins beyond a fold of the map, where `multistep_flow` gives no density.
    """
    steps = multistep(times)
    centring = centring_matrix(ends)
    path = _flow_backwards(field.velocity, ends, times)
    change = torch.full((len(ends),), math.nan, dtype=torch.float64, device=ends.device)
    all_found = False
    for _ in range(MOST_ITERATIONS):
        velocities, rates_of_tangents = list[Tensor](), list[Tensor]()
        no_miss = torch.zeros_like(path[0]).flatten(1).unsqueeze(-1)
        # derivatives by the start, and beside them how far the path misses by its own steps
        tangents = [torch.cat([centring.expand(len(ends), -1, -1), no_miss], -1)]
        for k, step in enumerate(steps):
            moved, jacobian = field.at(step.time, path[k])
            assert jacobian is not None
            velocities.append(moved)
            rates_of_tangents.append(jacobian @ tangents[-1])
            following = step(tangents, rates_of_tangents)
            missed = step(path[: k + 1], velocities) - path[k + 1]
            following[..., -1] += missed.flatten(1)
            tangents.append(following)
        whole = (tangents[-1][..., :-1] + _mean_part(centring)).double()
        with one_thread():
            start = torch.linalg.solve_ex(whole, -tangents[-1][..., -1:].double()).result
        start = start.to(ends)
        moves = [(each[..., :-1] @ start + each[..., -1:]).view_as(ends) for each in tangents]
        largest = torch.stack([move.flatten(1).abs().amax(1) for move in moves]).amax(0)
        shorter = (LARGEST_MOVE * field.length / largest).clamp(max=1)[:, None, None]
        path = [place + shorter * move for place, move in zip(path, moves, strict=True)]
        path[-1] = ends
        found = largest < SMALL_MOVE * field.length
        determinant = _log_determinant(tangents[-1][..., :-1], centring)
        change = torch.where(found & determinant.isfinite(), -determinant, change)
        if bool((largest < SMALLEST_MOVE * field.length).all()) or (all_found and found.all()):
            break
        all_found = bool(found.all())
    return FlowResult(path[0], change)


def _flow_backwards(velocity: Velocity, ends: Tensor, times: Tensor) -> list[Tensor]:
    """The path of the flow that arrives at the ends, at all times of the grid."""
    path = [ends]
    for stop, start in pairwise(times.flip(0)):
        between = torch.stack([stop, (start + stop) / 2, start])
        path.append(runge_kutta(velocity, None, path[-1], between).positions)
    return path[::-1]


def _log_determinant(
    tangents: Float[Tensor, "batch coordinates coordinates"],
    centring: Float[Tensor, "coordinates coordinates"],
) -> Float64[Tensor, "batch"]:
    """log det of the derivatives of centred positions by centred ones, -inf unless positive."""
    with one_thread():
        sign, logarithm = torch.linalg.slogdet((tangents + _mean_part(centring)).double())
    return torch.where(sign > 0, logarithm, -math.inf)


def _mean_part(centring: Tensor) -> Tensor:
    """What centring removes: without it a determinant would be zero."""
    return torch.eye(centring.shape[-1], dtype=centring.dtype, device=centring.device) - centring
