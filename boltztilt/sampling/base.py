"""The Gaussians that ensembles start from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Float64, Int
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
        if not 0 < self.std < math.inf:
            raise ValueError(f"base std is {self.std}; it must be a positive length")
        if self.centered and self.n_atoms < 2:
            raise ValueError("a centred Gaussian needs at least 2 atoms; pass centered=False")

    @property
    def mode_scale(self) -> Float[Tensor, "atoms atoms"] | None:
        """Square root of the covariance of the atoms over `std`; None where it is the identity."""
        return None

    @property
    def log_volume(self) -> float:
        """Logarithm of the determinant of `mode_scale`, on the space the law lives on."""
        return 0.0

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
        normaliser = 0.5 * self.dof * math.log(2 * math.pi * self.std**2)
        stretched = self.n_dims * self.log_volume
        return -self.squared_norm(positions.double()) / 2 - normaliser - stretched

    def squared_norm(self, vectors: Float[Tensor, "batch atoms dims"]) -> Float[Tensor, "batch"]:
        """Squares of velocities in units of the base's own spread, v Σ⁻¹ v."""
        return vectors.square().sum(dim=(-1, -2)) / self.std**2

    def pair_spreads(self) -> Float[Tensor, "atoms atoms"]:
        """Standard deviation of x_i - x_j on each axis."""
        return 2**0.5 * self.std * (1 - torch.eye(self.n_atoms))


@dataclass(frozen=True, eq=False)
class BondGaussian(Gaussian):
    """Gaussian that holds bonded atoms together, log rho_0 = -sum_bonds |x_i - x_j|² / 2 std² + c.

    Bonds of a molecule without rings are independent vectors with the standard deviation `std` on
    every axis, as those of an ideal chain. Always centred.

    Args:
        bonds: `(2, bonds)`, the bonded atoms; they must connect all atoms.
    """

    bonds: Int[Tensor, "2 bonds"] = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.centered:
            raise ValueError("a Gaussian of bonds is always centred: pass centered=True")
        if bool((self._spectrum[0][1:] < 1e-9).any()):
            raise ValueError(
                "the bonds do not connect all atoms, and atoms without a way to each other have no "
                "normalised Gaussian; use the isotropic base (base_kind = 'isotropic')"
            )

    @cached_property
    def _spectrum(self) -> tuple[Float64[Tensor, "atoms"], Float64[Tensor, "atoms atoms"]]:
        """Eigenvalues, the smallest zero, and eigenvectors of the graph's Laplacian."""
        first, second = self.bonds.cpu()
        difference = torch.zeros(len(first), self.n_atoms, dtype=torch.float64)
        numbers = torch.arange(len(first))
        difference[numbers, first], difference[numbers, second] = 1.0, -1.0
        return torch.linalg.eigh(difference.T @ difference)

    @cached_property
    def _modes(self) -> Float64[Tensor, "atoms modes"]:
        """The modes of the atoms, each as long as its standard deviation over `std`."""
        values, vectors = self._spectrum
        return vectors[:, 1:] / values[1:].sqrt()

    @cached_property
    def mode_scale(self) -> Float64[Tensor, "atoms atoms"]:
        """Square root of the covariance of the atoms over `std`, symmetric, zero on their mean."""
        return self._modes @ self._spectrum[1][:, 1:].T

    @cached_property
    def log_volume(self) -> float:
        """Logarithm of the determinant of `mode_scale`, without the motion of the mean."""
        return -0.5 * float(self._spectrum[0][1:].log().sum())

    def sample(
        self,
        n: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "batch atoms dims"]:
        """`n` independent draws on the generator's device."""
        shape = (n, self.n_atoms - 1, self.n_dims)
        noise = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
        return self.std * remove_mean(self._modes.to(noise) @ noise)

    def squared_norm(self, vectors: Float[Tensor, "batch atoms dims"]) -> Float[Tensor, "batch"]:
        """Squares of velocities in units of the base's own spread, v Σ⁻¹ v."""
        first, second = self.bonds.to(vectors.device)
        squares = (vectors[:, first] - vectors[:, second]).square().sum(dim=(-1, -2))
        return squares / self.std**2

    def pair_spreads(self) -> Float[Tensor, "atoms atoms"]:
        """Standard deviation of x_i - x_j on each axis."""
        return self.std * torch.cdist(self._modes, self._modes).float()
