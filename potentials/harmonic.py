"""Independent harmonic wells: the Gaussian as a potential, exact in every respect."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from boltztilt.energy import Potential


class Harmonic(Potential):
    """The energy U(x) = (stiffness/2) sum_i |x_i - mean(x)|^2 in kT; no mean if not centered.

    Closed forms, with dof = n_dims (n_atoms - 1) if centered and n_dims n_atoms otherwise:
    log Z = (dof/2) log(2 pi / stiffness), <U> = dof/2, var U = dof/2, and every coordinate of the
    subspace has variance 1 / stiffness.
    """

    mirror_symmetric = True

    def __init__(
        self, n_atoms: int, stiffness: float = 1.0, n_dims: int = 3, centered: bool = True
    ):
        if stiffness <= 0:
            raise ValueError(f"stiffness must be positive, got {stiffness}")
        self.n_atoms = n_atoms
        self.n_dims = n_dims
        self.stiffness = stiffness
        self.centered = centered
        self.dof = n_dims * (n_atoms - int(centered))

    @property
    def log_z(self) -> float:
        """The logarithm of the configuration integral of exp(-U)."""
        return 0.5 * self.dof * math.log(2.0 * math.pi / self.stiffness)

    def sample(
        self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "batch atoms dims"]:
        """Returns n independent draws from exp(-U) / Z."""
        shape = (n, self.n_atoms, self.n_dims)
        noise = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
        return self._displacement(noise) / math.sqrt(self.stiffness)

    def energy(self, positions: Float[Tensor, "batch atoms dims"]) -> Float[Tensor, "batch"]:
        return 0.5 * self.stiffness * self._displacement(positions).square().sum((1, 2))

    def energy_and_force(
        self, positions: Float[Tensor, "batch atoms dims"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch atoms dims"]]:
        displacement = self._displacement(positions.detach())
        energy = 0.5 * self.stiffness * displacement.square().sum((1, 2))
        return energy, -self.stiffness * displacement

    def _displacement(
        self, positions: Float[Tensor, "batch atoms dims"]
    ) -> Float[Tensor, "batch atoms dims"]:
        return positions - positions.mean(1, keepdim=True) if self.centered else positions
