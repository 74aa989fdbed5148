"""Lennard-Jones clusters held together by a harmonic trap around their centre of mass."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from boltztilt.energy import Potential
from boltztilt.potentials.pairs import AtomPairs


class Convention(NamedTuple):
    """The constants in which published Lennard-Jones benchmarks differ."""

    pair_scale: float
    trap: float


CONVENTIONS = {"dem": Convention(2.0, 1.0), "bgflow": Convention(1.0, 1.0)}


class LennardJones(Potential):
    """The energy of a trapped cluster of identical atoms in reduced units, r_min = 1 and kT = 1.

    U(x) = pair_scale * sum_{i<j} [r_ij^-12 - 2 r_ij^-6] + (trap/2) * sum_i |x_i - mean(x)|^2

    Closed forms: a pair has its minimum -pair_scale at r = 1 and crosses zero at r = 2^(-1/6); a
    dimer feels the trap as trap r^2 / 4. Energies overflow to +inf at overlaps, where the force
    is defined as zero.

    Conventions: "dem" (pair_scale 2, trap 1) is the one that the public LJ-13 and LJ-55 reference
    samples follow; "bgflow" (pair_scale 1, trap 1) is the default of that package.

    References:
        Klein, Krämer, Noé (2023), Equivariant flow matching, https://arxiv.org/abs/2306.15030
        Akhound-Sadegh et al. (2024), Iterated denoising energy matching for sampling from
        Boltzmann densities, https://arxiv.org/abs/2402.06121
    """

    centered = True
    mirror_symmetric = True

    def __init__(self, n_atoms: int, convention: str | Convention = "dem", n_dims: int = 3):
        self.pairs = AtomPairs(n_atoms)
        self.n_atoms = n_atoms
        self.n_dims = n_dims
        self.pair_scale, self.trap = find_convention(convention)

    def energy(self, positions: Float[Tensor, "batch atoms dims"]) -> Float[Tensor, "batch"]:
        inverse_six = self.pairs.separations(positions).square().sum(1).reciprocal().pow(3)
        return self._pair_energy(inverse_six) + self._trap_energy(positions)

    def energy_and_force(
        self, positions: Float[Tensor, "batch atoms dims"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch atoms dims"]]:
        positions = positions.detach()
        separations = self.pairs.separations(positions)
        inverse_square = separations.square().sum(1).reciprocal()
        inverse_six = inverse_square.pow(3)
        energy = self._pair_energy(inverse_six) + self._trap_energy(positions)
        strength = 12.0 * self.pair_scale * inverse_six * (inverse_six - 1.0) * inverse_square
        force = self.pairs.sum_on_atoms(strength[:, None] * separations)
        force = force - self.trap * (positions - positions.mean(1, keepdim=True))
        finite = torch.isfinite(energy) & torch.isfinite(force).flatten(1).all(1)
        return energy, torch.where(finite[:, None, None], force, 0.0)

    def _pair_energy(self, inverse_six: Float[Tensor, "pairs batch"]) -> Float[Tensor, "batch"]:
        return self.pair_scale * (inverse_six * (inverse_six - 2.0)).sum(0)

    def _trap_energy(self, positions: Float[Tensor, "batch atoms dims"]) -> Float[Tensor, "batch"]:
        centred = positions - positions.mean(1, keepdim=True)
        return 0.5 * self.trap * centred.square().sum((1, 2))


def find_convention(convention: str | Convention) -> Convention:
    """Returns the constants of a named convention, or the given ones."""
    if isinstance(convention, Convention):
        return convention
    if convention not in CONVENTIONS:
        raise ValueError(
            f"unknown Lennard-Jones convention {convention!r}: choose one of "
            f"{', '.join(CONVENTIONS)}, or give Convention(pair_scale, trap)"
        )
    return CONVENTIONS[convention]
