"""The Gaussian every ensemble starts from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from boltztilt.geometry import remove_mean


@dataclass(frozen=True)
class Gaussian:
    """Isotropic Gaussian N(0, std² I), on the zero-mean subspace when `centered`.

    Densities are taken with respect to the Lebesgue measure of the space the law lives on, which
    has `dof` dimensions: `n_dims (n_atoms - 1)` when centred, `n_dims n_atoms` otherwise.
    """

    n_atoms: int
    n_dims: int = 3
    std: float = 1.0
    centered: bool = True

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"base std is {self.std}; it must be a positive length")
        if self.centered and self.n_atoms < 2:
            raise ValueError("a centred Gaussian needs at least 2 atoms; pass centered=False")

    @property
    def dof(self) -> int:
        """Number of dimensions of the space the law lives on."""
        return self.n_dims * (self.n_atoms - int(self.centered))

    def sample(
        self,
        n: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "batch atoms dims"]:
        """`n` independent draws on the generator's device."""
        shape = (n, self.n_atoms, self.n_dims)
        noise = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
        return self.std * (remove_mean(noise) if self.centered else noise)

    def log_density(self, positions: Float[Tensor, "batch atoms dims"]) -> Float64[Tensor, "batch"]:
        """Normalised log-density in float64."""
        squares = positions.double().square().sum(dim=(-1, -2))
        normaliser = 0.5 * self.dof * math.log(2 * math.pi * self.std**2)
        return -squares / (2 * self.std**2) - normaliser
