"""Transport of samples and log-densities along a velocity field, forward or backward in time."""

from __future__ import annotations

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


class _Rate:
    """Right-hand side (dx/dt, d log q/dt) of the flow, with or without the density."""

    def __init__(self, field: torch.nn.Module, with_density: bool) -> None:
        self.field: Any = field
        self.with_density = with_density

    def __call__(self, time: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        times = time.to(positions).expand(positions.shape[0])
        if not self.with_density:
            velocity = self.field(times, positions)
            return velocity, torch.zeros_like(times, dtype=torch.float64)
        velocity, divergence = self.field.velocity_and_divergence(times, positions)
        return velocity, -divergence.double()


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
    rate = _Rate(field, with_density)
    change = torch.zeros(positions.shape[0], dtype=torch.float64, device=positions.device)
    times = times.to(positions.device)
    with torch.no_grad():
        for start, stop in pairwise(times):
            step = stop - start
            middle = start + step / 2
            h = step.to(positions)
            v1, q1 = rate(start, positions)
            v2, q2 = rate(middle, positions + h / 2 * v1)
            v3, q3 = rate(middle, positions + h / 2 * v2)
            v4, q4 = rate(stop, positions + h * v3)
            positions = positions + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
            change = change + step / 6 * (q1 + 2 * q2 + 2 * q3 + q4)
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

    rate = _Rate(field, with_density)
    change = torch.zeros(positions.shape[0], dtype=torch.float64, device=positions.device)
    ends = torch.tensor([start, stop], dtype=torch.float64, device=positions.device)
    with torch.no_grad():
        path = odeint(
            lambda time, state: rate(time, state[0].to(positions.dtype)),
            (positions, change),
            ends,
            rtol=tolerance,
            atol=tolerance,
            method="dopri5",
        )
    return FlowResult(path[0][-1].to(positions.dtype), path[1][-1])
