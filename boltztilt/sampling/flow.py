"""Transport of samples and log-densities along a velocity field, forward or backward in time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor


class FlowResult(NamedTuple):
    """End points of the flow and `log q(end) - log q(start) = -∫ div b dt` along it."""

    positions: Float[Tensor, "batch atoms dims"]
    log_density_change: Float64[Tensor, "batch"]


def warped_grid(n_steps: int, power: float = 2.0) -> Float64[Tensor, "times"]:
    """Times `1 - (1 - k/n_steps)^power`, finer towards t = 1, where fields stiffen."""
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}; a flow needs at least one step")
    return 1 - (1 - torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)) ** power


Time = TypeVar("Time", float, Tensor)


def resting_rate(times: Time) -> Time:
    """The factor of x in the velocity between two equal Gaussians, dlog s/dt, s² = t² + (1-t)²."""
    return (2 * times - 1) / (times**2 + (1 - times) ** 2)


Velocity = Callable[[Tensor, Tensor], Tensor]
"""Velocity `(batch, atoms, dims)` at times `(batch,)` and positions."""

Rates = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Velocity and its divergence `(batch,)` at times `(batch,)` and positions."""


def integrate(
    field: Any,
    positions: Float[Tensor, "batch atoms dims"],
    times: Float64[Tensor, "times"],
    with_density: bool = True,
    halves: bool = False,
) -> FlowResult:
    """Solve dx/dt = b_t(x), d log q/dt = -div b_t(x) over the given times, see `runge_kutta`.

    The times may decrease: the flow is then followed backwards. Log-densities accumulate in
    float64 whatever the dtype of the positions; without density the change is zero.
    """
    rates = field.velocity_and_divergence if with_density else None
    with torch.no_grad():
        return runge_kutta(field, rates, positions, times, halves)


def runge_kutta(
    velocity: Velocity,
    rates: Rates | None,
    positions: Float[Tensor, "batch atoms dims"],
    times: Float64[Tensor, "times"],
    halves: bool = False,
) -> FlowResult:
    """Positions by classical RK4 steps, log-densities by Simpson's rule along their path.

    Both are of fourth order, and a step needs the divergence twice instead of at each of the four
    stages. Autograd can follow the result back to the parameters of the field.

    Args:
        halves: make each step in two halves, which gives its middle; else that is the cubic Hermite
            interpolant of its ends. Halves pay where divergences are dear: for LJ-55 their errors
            of log q are half as large at the same number of divergences.
    """
    change = torch.zeros(positions.shape[0], dtype=torch.float64, device=positions.device)
    times = times.to(positions.device)

    def at(time: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        expanded = time.to(place).expand(len(place))
        return (velocity(expanded, place), change) if rates is None else rates(expanded, place)

    def step(start: Tensor, stop: Tensor, place: Tensor, v1: Tensor) -> Tensor:
        h, half = (stop - start).to(place), ((start + stop) / 2).to(place).expand(len(place))
        v2 = velocity(half, place + h / 2 * v1)
        v3 = velocity(half, place + h / 2 * v2)
        v4 = velocity(stop.to(place).expand(len(place)), place + h * v3)
        return place + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)

    v1, d1 = at(times[0], positions)
    for start, stop in pairwise(times):
        middle = (start + stop) / 2
        if halves:
            between = step(start, middle, positions, v1)
            v_middle, d_middle = at(middle, between)
            end = step(middle, stop, between, v_middle)
            v_end, d_end = at(stop, end)
        else:
            end = step(start, stop, positions, v1)
            v_end, d_end = at(stop, end)
            between = (positions + end) / 2 + (stop - start).to(end) / 8 * (v1 - v_end)
            d_middle = change if rates is None else at(middle, between)[1]
        if rates is not None:
            simpson = d1.double() + 4 * d_middle.double() + d_end.double()
            change = change - (stop - start) / 6 * simpson
        positions, v1, d1 = end, v_end, d_end
    return FlowResult(positions, change)


def integrate_dopri5(
    field: Any,
    positions: Float[Tensor, "batch atoms dims"],
    start: float = 0.0,
    stop: float = 1.0,
    with_density: bool = True,
    tolerance: float = 1e-5,
) -> FlowResult:
    """The same flow by torchdiffeq's adaptive Dormand-Prince solver (rtol = atol = tolerance).

    The solver keeps all of its state in float64; the field sees positions in their own dtype.

    Reference: J. R. Dormand, P. J. Prince, J. Comput. Appl. Math. 6, 19 (1980).
    """
    from torchdiffeq import odeint

    def rate(time: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        place = state[0].to(positions.dtype)
        expanded = time.to(place).expand(len(place))
        if not with_density:
            return field(expanded, place), torch.zeros_like(state[1])
        velocity, divergence = field.velocity_and_divergence(expanded, place)
        return velocity, -divergence.double()

    change = torch.zeros(positions.shape[0], dtype=torch.float64, device=positions.device)
    ends = torch.tensor([start, stop], dtype=torch.float64, device=positions.device)
    with torch.no_grad():
        path = odeint(
            rate,
            (positions, change),
            ends,
            rtol=tolerance,
            atol=tolerance,
            method="dopri5",
        )
    return FlowResult(path[0][-1].to(positions.dtype), path[1][-1])
