"""Where the steps of a solver belong: at a pace at which all steps make errors of like size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from boltztilt.sampling.flow import FlowResult, warped_grid

N_BLOCKS = 16
"""Parts of the flow whose errors are measured one at a time."""

ORDER = 4
"""A step of size s is taken to make an error ~ s^4. Small steps make errors ~ s^5, but steps of the
size in use err less by this one."""

MOST_ERROR = 5.0
"""In nats. Structures that err by more have overlapping atoms and no weight: they do not count."""

LEAST_ERROR = 1e-3
"""In nats; smaller errors are rounding."""

EARLY_STEPS = 0.85
"""What the first half of the pace is worth to the multistep solver, whose frame shrinks with the
cloud: there Runge-Kutta steps err most by the shrinking alone."""

Carry = Callable[[Tensor, Tensor], FlowResult]
"""Positions, and changes of log-density, after the flow over the given times."""


def measured_pace(
    carry: Carry,
    log_weights: Callable[[Tensor, FlowResult], Float64[Tensor, "batch"]],
    starts: Float[Tensor, "batch atoms dims"],
    progress: Callable[[int, int], None] | None = None,
) -> Float64[Tensor, "knots"]:
    """Times between which equal numbers of Runge-Kutta steps make equal errors of log-weights.

    Each of `N_BLOCKS` blocks of a fine grid is passed in one step instead of two, and the flow
    followed on the fine grid to its end: the change of the log-weights tells how much of a coarse
    grid's error that block makes, positions and densities together. Errors of blocks are
    independent, and their sum of squares is least where the density of steps is proportional to
    error^(1/4).

    Args:
        carry: the solver.
        log_weights: of the ends of the flow from given starts, up to a constant.
        starts: draws of the base; a dozen are enough.
        progress: called with the numbers of blocks done and wanted.
    """
    fine = warped_grid(2 * N_BLOCKS)
    blocks = [fine[2 * k : 2 * k + 3] for k in range(N_BLOCKS)]
    path = [FlowResult(starts, torch.zeros(len(starts), dtype=torch.float64))]
    for times in blocks:
        path.append(_continued(carry, path[-1], times))
    exact = log_weights(starts, path[-1])
    errors = []
    for number, (before, times) in enumerate(zip(path[:-1], blocks, strict=True)):
        end = _continued(carry, before, times[::2])
        if number + 1 < N_BLOCKS:
            end = _continued(carry, end, fine[2 * number + 2 :])
        errors.append((log_weights(starts, end) - exact).abs())
        if progress is not None:
            progress(number + 1, N_BLOCKS)
    return _pace(torch.stack(errors), fine[::2])


def _continued(carry: Carry, start: FlowResult, times: Tensor) -> FlowResult:
    """The flow from where it was left off."""
    ahead = carry(start.positions, times)
    change = start.log_density_change + ahead.log_density_change
    return FlowResult(ahead.positions, change)


def _pace(
    errors: Float64[Tensor, "blocks batch"], ends: Float64[Tensor, "knots"]
) -> Float64[Tensor, "knots"]:
    """The ends of as many blocks that deserve equal numbers of steps."""
    counted = (errors < MOST_ERROR).all(0)  # False for NaN
    if not counted.any():
        return ends
    sizes = errors[:, counted].square().mean(1).sqrt()
    shares = sizes.clamp(min=LEAST_ERROR) ** (1 / ORDER)
    done = torch.cat([shares.new_zeros(1), shares.cumsum(0)]) / shares.sum()
    even = torch.linspace(0, 1, len(ends), dtype=torch.float64)
    return 1 - interpolated(even, done, (1 - ends).sqrt()) ** 2


def paced_grid(
    n_steps: int, pace: Float64[Tensor, "knots"], early: float = 1.0
) -> Float64[Tensor, "times"]:
    """Times of `n_steps` steps, equally many in each interval of a pace.

    Between times of the pace steps are those of `warped_grid`, which is the pace of itself.

    Args:
        early: how many steps the first half of the pace gets, compared with the second.
    """
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}; a flow needs at least one step")
    known, even = (torch.linspace(0, 1, n, dtype=torch.float64) for n in (len(pace), n_steps + 1))
    done = torch.tensor([0.0, early, early + 1], dtype=torch.float64) / (early + 1)
    wanted = interpolated(even, done, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    return 1 - interpolated(wanted, known, (1 - pace).sqrt()) ** 2


def interpolated(
    wanted: Float64[Tensor, "wanted"], known: Float64[Tensor, "n"], values: Float64[Tensor, "n"]
) -> Float64[Tensor, "wanted"]:
    """Linear interpolation of values at ascending places that cover those wanted."""
    after = torch.searchsorted(known, wanted).clamp(1, len(known) - 1)
    low, high = known[after - 1], known[after]
    return torch.lerp(values[after - 1], values[after], (wanted - low) / (high - low))
