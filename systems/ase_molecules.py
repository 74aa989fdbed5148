"""Molecules and clusters from ASE: elements, one structure, and bonds by covalent radii."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import mdtraj
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from boltztilt.potentials.ase_potential import ANGSTROM_PER_NM, check_ase_atoms
from boltztilt.systems.molecule import Molecule

if TYPE_CHECKING:
    import ase

COVALENT = (1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 33, 34, 35, 52, 53)
"""Atomic numbers of elements that bond for good; atoms of metals change their neighbours."""

STRETCHED = 1.2
"""Largest length of a bond over the sum of the covalent radii."""

WIDER = 2.0
"""Standard deviation of a cluster's base over that of its atoms; that of LJ-13 is 1.9 as wide."""

Bonds = Iterable[tuple[int, int]]


def molecule_from_ase(atoms: ase.Atoms, bonds: Bonds | None = None) -> Molecule:
    """The atoms as a molecule, in nm.

    Args:
        atoms: elements and one structure.
        bonds: pairs of bonded atoms, by default those of `guessed_bonds`.
    """
    check_ase_atoms(atoms)
    topology = mdtraj.Topology()
    residue = topology.add_residue("MOL", topology.add_chain())
    for number, element in enumerate(atoms.numbers, start=1):
        kind = mdtraj.element.Element.getByAtomicNumber(int(element))
        topology.add_atom(f"{kind.symbol}{number}", kind, residue)
    pairs = guessed_bonds(atoms) if bonds is None else bonds
    for first, second in pairs:
        _check_bond(first, second, len(atoms))
        topology.add_bond(topology.atom(first), topology.atom(second))
    return Molecule(topology, torch.from_numpy(atoms.positions / ANGSTROM_PER_NM).float())


def guessed_bonds(atoms: ase.Atoms) -> list[tuple[int, int]]:
    """Pairs closer than 1.2 times the sum of their covalent radii; none of metals."""
    from ase.neighborlist import natural_cutoffs, neighbor_list

    first, second = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=STRETCHED))
    covalent = np.isin(atoms.numbers, COVALENT)
    chosen = (first < second) & covalent[first] & covalent[second]
    return list(zip(first[chosen].tolist(), second[chosen].tolist(), strict=True))


def cluster_spread(structure: Float[Tensor, "atoms 3"]) -> float:
    """Standard deviation of a Gaussian base that is wider than the structure."""
    centred = structure - structure.mean(0)
    return WIDER * float(centred.square().mean().sqrt())


def _check_bond(first: int, second: int, n_atoms: int) -> None:
    if first == second or not (0 <= first < n_atoms and 0 <= second < n_atoms):
        raise ValueError(
            f"bond ({first}, {second}): two different atoms of 0 to {n_atoms - 1} are needed"
        )
