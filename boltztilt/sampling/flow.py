"""Transport of samples and log-densities along a velocity field, forward or backward in time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor


class FlowResult(NamedTuple):
    """End points of the flow and `log q(end) - log q(start) = -∫ div b dt` along it."""

    positions: Float[Tensor, "batch atoms dims"]
    log_density_change: Float64[Tensor, "batch"]


def warped_grid(n_steps: int, power: float = 1.4) -> Float64[Tensor, "times"]:
    """Times `1 - (1 - k/n_steps)^power`, finer towards t = 1, where fields stiffen."""
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}; a flow needs at least one step")
    return 1 - (1 - torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)) ** power


Rates = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Velocity `(batch, atoms, dims)` and divergence `(batch,)` at times `(batch,)` and positions."""


def rates_of(field: Any, with_density: bool) -> Rates:
    """The field's velocity and exact divergence, or zeros instead of the divergence."""
    if with_density:
        return field.velocity_and_divergence
    return lambda times, positions: (field(times, positions), torch.zeros_like(times))


def integrate(
    field: torch.nn.Module,
    positions: Float[Tensor, "batch atoms dims"],
    times: Float64[Tensor, "times"],
    with_density: bool = True,
) -> FlowResult:
    """Solve dx/dt = b_t(x), d log q/dt = -div b_t(x) over the given times by classical RK4.

    The times may decrease: the flow is then followed backwards. Log-densities accumulate in
    float64 whatever the dtype of the positions; without density the change is zero.
    """
    with torch.no_grad():
        return runge_kutta(rates_of(field, with_density), positions, times)


def runge_kutta(
    rates: Rates, positions: Float[Tensor, "batch atoms dims"], times: Float64[Tensor, "times"]
) -> FlowResult:
    """The steps of `integrate`, which autograd can follow back to the parameters of the rates."""
    change = torch.zeros(positions.shape[0], dtype=torch.float64, device=positions.device)
    times = times.to(positions.device)
    for start, stop in pairwise(times):
        step = stop - start
        h = step.to(positions)
        first, middle, last = (
            time.to(positions).expand(len(positions)) for time in (start, start + step / 2, stop)
        )
        v1, d1 = rates(first, positions)
        v2, d2 = rates(middle, positions + h / 2 * v1)
        v3, d3 = rates(middle, positions + h / 2 * v2)
        v4, d4 = rates(last, positions + h * v3)
        positions = positions + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
        inner = d2.double() + d3.double()
        change = change - step / 6 * (d1.double() + 2 * inner + d4.double())
    return FlowResult(positions, change)


def integrate_dopri5(
    field: torch.nn.Module,
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

    rates = rates_of(field, with_density)

    def rate(time: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        inputs = state[0].to(positions.dtype)
        velocity, divergence = rates(time.to(inputs).expand(len(inputs)), inputs)
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
