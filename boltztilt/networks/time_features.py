"""Time features shared by all velocity networks."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

N_TIME_FEATURES = 16
SMALLEST_NOISE = 1e-4
"""Times within this distance of 1 share their features: log(1 - t) stays finite."""


class TimeFeatures(nn.Module):
    """Features of t and of log(1 - t) through a two-layer perceptron.

    Fields change on the scale of t early and on the scale of log(1 - t) late, so both are given
    with a few harmonics each.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.perceptron = nn.Sequential(
            nn.Linear(N_TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def forward(self, times: Float[Tensor, "batch"]) -> Float[Tensor, "batch width"]:
        """Features `(batch, width)`."""
        log_noise = torch.log((1 - times).clamp(min=SMALLEST_NOISE))
        slow = [math.pi * k * times for k in (1, 2, 3)]
        fast = [k * log_noise for k in (0.5, 1, 2, 3)]
        waves = torch.stack(slow + fast, dim=-1)
        ramps = torch.stack([times, log_noise / 5], dim=-1)
        return self.perceptron(torch.cat([ramps, waves.sin(), waves.cos()], dim=-1))
