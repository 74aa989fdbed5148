"""Radial basis: compact bumps on a warped distance axis, fine around the repulsive core."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

BUMP_HALF_WIDTH = 2.8
"""Reach of a bump in units of the spacing: neighbours overlap smoothly, no value is denormal."""

SWITCH_FROM = 0.8
"""Share of a cutoff from which on pairs fade."""


class WarpedBumps(nn.Module):
    """`n_radial` bumps (1 - (w - k)²/h²)³ in the warped distance w(d), zero beyond |w - k| = h.

    The warp w(d) = (spread/resolution) asinh((d - core)/spread) has slope 1/resolution at the core
    distance and grows logarithmically far away, so that bumps sit `resolution` apart at the core
    and ever coarser away from it. They are evenly spaced in w and cover d = 0 up to `reach`.
    """

    centres: Tensor

    def __init__(self, n_radial: int, core: float, spread: float, reach: float) -> None:
        super().__init__()
        if n_radial < 2 or not 0 < core < reach or spread <= 0:
            raise ValueError(
                f"radial basis needs n_radial >= 2, 0 < core < reach and spread > 0, got "
                f"{n_radial=}, {core=}, {reach=}, {spread=}"
            )
        first, last = math.asinh(-core / spread), math.asinh((reach - core) / spread)
        self.n_radial, self.core, self.spread = n_radial, core, spread
        self.slope = (n_radial - 1) / (last - first)
        self.register_buffer("centres", self.slope * first + torch.arange(n_radial).float())

    def forward(
        self, distances: Float[Tensor, "batch pairs"]
    ) -> Float[Tensor, "batch pairs n_radial"]:
        """Values of all bumps at the given distances."""
        return self._offsets_and_heights(distances)[1] ** 3

    def derivative(
        self, distances: Float[Tensor, "batch pairs"]
    ) -> Float[Tensor, "batch pairs n_radial"]:
        """Derivatives of all bumps with respect to distance."""
        offsets, heights = self._offsets_and_heights(distances)
        slope = self.slope / torch.sqrt((distances - self.core) ** 2 + self.spread**2)
        return (-6 / BUMP_HALF_WIDTH**2) * slope.unsqueeze(-1) * offsets * heights**2

    def _offsets_and_heights(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        warped = self.slope * torch.asinh((distances - self.core) / self.spread)
        offsets = warped.unsqueeze(-1) - self.centres
        return offsets, (1 - (offsets / BUMP_HALF_WIDTH) ** 2).clamp(min=0)


def switch_with_derivative(
    distances: Float[Tensor, "batch pairs"], cutoff: float
) -> tuple[Float[Tensor, "batch pairs"], Float[Tensor, "batch pairs"]]:
    """A switch from 1 at `SWITCH_FROM` cutoff to 0 at the cutoff, and its derivative.

    The polynomial 1 - 10 s³ + 15 s⁴ - 6 s⁵ has two continuous derivatives at both ends.
    """
    width = (1 - SWITCH_FROM) * cutoff
    s = ((distances - SWITCH_FROM * cutoff) / width).clamp(0, 1)
    value = 1 - s**3 * (10 - s * (15 - 6 * s))
    return value, -30 * (s * (1 - s)) ** 2 / width
