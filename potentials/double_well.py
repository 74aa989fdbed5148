"""Particles that interact through a double well in their distance (DW-4 and its relatives)."""

import torch
from jaxtyping import Float
from torch import Tensor

from boltztilt.energy import Potential
from boltztilt.potentials.pairs import AtomPairs


class DoubleWell(Potential):
    """The energy of particles with a double-well pair interaction, kT = 1.

    U(x) = sum_{i<j} [quadratic (d_ij - centre)^2 + quartic (d_ij - centre)^4]

    Closed forms, with quadratic = -q < 0: a pair has minima of depth -q^2 / (4 quartic) at
    centre ± sqrt(q / (2 quartic)) and a barrier of height zero at the centre. The default
    constants (minima -4.444 at 4 ± 1.491) with four particles in the plane are the benchmark DW-4.

    Reference:
        Köhler, Klein, Noé (2020), Equivariant flows: exact likelihood generative learning for
        symmetric densities, section 7, https://arxiv.org/abs/2006.02425
    """

    centered = True
    mirror_symmetric = True

    def __init__(
        self,
        n_atoms: int = 4,
        n_dims: int = 2,
        quadratic: float = -4.0,
        quartic: float = 0.9,
        centre: float = 4.0,
    ):
        if quartic <= 0:
            raise ValueError(f"quartic must be positive for a bound pair, got {quartic}")
        self.pairs = AtomPairs(n_atoms)
        self.n_atoms = n_atoms
        self.n_dims = n_dims
        self.quadratic = quadratic
        self.quartic = quartic
        self.centre = centre

    def energy(self, positions: Float[Tensor, "batch atoms dims"]) -> Float[Tensor, "batch"]:
        distances = self.pairs.separations(positions).square().sum(1).sqrt()
        return self._pair_energy((distances - self.centre).square())

    def energy_and_force(
        self, positions: Float[Tensor, "batch atoms dims"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch atoms dims"]]:
        separations = self.pairs.separations(positions.detach())
        distances = separations.square().sum(1).sqrt()
        stretch = distances - self.centre
        slope = 2.0 * stretch * (self.quadratic + 2.0 * self.quartic * stretch.square())
        directions = separations / distances.clamp_min(torch.finfo(distances.dtype).tiny)[:, None]
        force = self.pairs.sum_on_atoms(-slope[:, None] * directions)
        return self._pair_energy(stretch.square()), force

    def _pair_energy(self, square: Float[Tensor, "pairs batch"]) -> Float[Tensor, "batch"]:
        return (square * (self.quadratic + self.quartic * square)).sum(0)
