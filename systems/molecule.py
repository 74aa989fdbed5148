"""A molecule: its atoms and bonds, one structure, and which of its atoms are interchangeable."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from boltztilt.energy import Potential

if TYPE_CHECKING:
    import mdtraj

DISTORTION = 0.01
"""Standard deviation (nm) of the structures on which exchanged atoms are compared."""

EXCHANGE_TOLERANCE = 1e-6
"""Largest relative change of the energy that counts as none."""


@dataclass(frozen=True, eq=False)
class Molecule:
    """Atoms and bonds, with one structure in nm that shows the handedness and the bond lengths.

    Attributes:
        topology: elements, names, residues and bonds.
        structure: positions `(n_atoms, 3)` in nm.
    """

    topology: mdtraj.Topology
    structure: Float[Tensor, "atoms 3"]

    def __post_init__(self) -> None:
        expected = (self.topology.n_atoms, 3)
        if tuple(self.structure.shape) != expected:
            raise ValueError(
                f"structure of shape {tuple(self.structure.shape)} given for a topology of "
                f"{expected[0]} atoms: expected {expected}, in nm"
            )

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return int(self.topology.n_atoms)

    @cached_property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers."""
        return tuple(atom.element.atomic_number for atom in self.topology.atoms)

    @cached_property
    def bonds(self) -> Int[Tensor, "2 bonds"]:
        """Bonded atoms i < j, every bond once."""
        pairs = sorted({tuple(sorted((a.index, b.index))) for a, b in self.topology.bonds})
        return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T

    @cached_property
    def bonded(self) -> Bool[Tensor, "atoms atoms"]:
        """Whether two atoms are bonded."""
        matrix = torch.zeros(self.n_atoms, self.n_atoms, dtype=torch.bool)
        matrix[self.bonds[0], self.bonds[1]] = True
        return matrix | matrix.T

    def bond_distances(self, largest: int = 4) -> Int[Tensor, "atoms atoms"]:
        """Number of bonds on the shortest way between two atoms, at most `largest`."""
        within = torch.eye(self.n_atoms, dtype=torch.bool)
        distances = torch.full((self.n_atoms, self.n_atoms), largest)
        distances[within] = 0
        for length in range(1, largest):
            further = within | (within.float() @ self.bonded.float() > 0)
            distances[further & ~within] = length
            within = further
        return distances

    def roles(self, potential: Potential) -> tuple[int, ...]:
        """One integer per atom, the same for atoms whose exchange leaves the energy unchanged.

        Candidates are atoms of one element with the same bonded neighbours, such as the hydrogens
        of a methyl group; the energy itself decides, on distorted structures.
        """
        roles = list(range(self.n_atoms))
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(4, self.n_atoms, 3, generator=generator, dtype=torch.float64)
        structures = self.structure.double() + DISTORTION * noise
        energies = potential.energy(structures)
        for first in range(self.n_atoms):
            for second in range(first + 1, self.n_atoms):
                if roles[second] != second or not self._same_surroundings(first, second):
                    continue
                order = torch.arange(self.n_atoms)
                order[first], order[second] = second, first
                change = (potential.energy(structures[:, order]) - energies).abs()
                if bool((change <= EXCHANGE_TOLERANCE * energies.abs().clamp(min=1)).all()):
                    roles[second] = roles[first]
        return tuple(roles)

    def _same_surroundings(self, first: int, second: int) -> bool:
        others = [atom for atom in range(self.n_atoms) if atom not in (first, second)]
        same_neighbours = bool((self.bonded[first] == self.bonded[second])[others].all())
        has_neighbours = bool(self.bonded[first, others].any())
        return same_neighbours and has_neighbours and self.elements[first] == self.elements[second]
