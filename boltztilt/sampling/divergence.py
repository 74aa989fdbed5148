"""Divergence of any velocity field: exact through the full Jacobian, or a stochastic estimate."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]

FORWARD_MODE = threading.Lock()
"""Forward-mode differentiation keeps its levels for the whole process: one thread at a time."""


def brute_force_divergence(
    velocity: Velocity,
    times: Float[Tensor, "batch"],
    positions: Float[Tensor, "batch atoms dims"],
) -> tuple[Float[Tensor, "batch atoms dims"], Float[Tensor, "batch"]]:
    """Velocity and its exact divergence from `atoms * dims` forward-mode products."""

    def at_time(x: Tensor) -> Tensor:
        return velocity(times, x)

    value = at_time(positions)
    divergence = torch.zeros_like(times)
    for atom in range(positions.shape[1]):
        for axis in range(positions.shape[2]):
            direction = torch.zeros_like(positions)
            direction[:, atom, axis] = 1.0
            with FORWARD_MODE:
                change = torch.func.jvp(at_time, (positions,), (direction,))[1]
            divergence = divergence + change[:, atom, axis]
    return value, divergence


def hutchinson_divergence(
    velocity: Velocity,
    times: Float[Tensor, "batch"],
    positions: Float[Tensor, "batch atoms dims"],
    generator: torch.Generator,
) -> tuple[Float[Tensor, "batch atoms dims"], Float[Tensor, "batch"]]:
    """Velocity and a one-probe unbiased estimate of its divergence.

    Unbiased for the divergence but not for weights: noise of variance s² in a log-weight
    multiplies its expected weight by exp(s²/2). Never use it for an ESS.

    Reference: M. F. Hutchinson, Commun. Stat. Simul. Comput. 19, 433 (1990).
    """
    probe = torch.randint(0, 2, positions.shape, generator=generator, device=positions.device)
    probe = probe.to(positions.dtype) * 2 - 1
    with FORWARD_MODE:
        value, change = torch.func.jvp(lambda x: velocity(times, x), (positions,), (probe,))[:2]
    return value, (probe * change).sum(dim=(-1, -2))
