"""A molecule: its atoms and bonds, one structure, and which of its atoms are interchangeable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from boltztilt.energy import Potential

if TYPE_CHECKING:
    import mdtraj

OVERLAP = 0.01
"""Distance (nm) below which two atoms of a structure are in each other's place."""

DEFAULTS: dict[str, Any] = {"base_kind": "bonds", "base_std": 0.1, "nm_per_length": 1.0}
"""Settings of systems of molecules, in nm, that replace those of clusters."""

RECIPE: dict[str, Any] = {
    "n_particles": 4096,
    "rungs_per_rollout": 1000,
    "rollout_steps": 14,
    "recentring": "hmc",
    "recentring_steps": 60,
    "steps_per_rung": 15,
    "first_rung_factor": 4.0,
    "polish_steps": 3000,
    "polish_chain_steps": 1100,
    "polish_rollout_every": 0,
    "likelihood_steps": 1300,
    "likelihood_batch": 32,
    "likelihood_solver_steps": 12,
    "likelihood_grid_power": 2.0,
    "likelihood_forces": True,
    "likelihood_anchor": 0.1,
    "uniform_times": 2,
    "smallest_noise": 0.003,
    "learning_rate": 0.01,
    "compile": True,
}
"""Settings of training that molecules start from; those of a system's own recipe come on top."""

NETWORK: dict[str, Any] = {
    "kind": "local_density",
    "core": 0.15,
    "spread": 0.15,
    "reach": 1.6,
    "noise_scale": 0.02,
    "collective_width": 128,
}
"""The network of molecules, with lengths in nm."""

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
        self._check_positions()

    def _check_positions(self) -> None:
        """Raises ValueError where an atom has no position, or that of another one."""
        atoms = list(self.topology.atoms)
        unknown = (~torch.isfinite(self.structure).all(dim=1)).nonzero().flatten().tolist()
        if unknown:
            raise ValueError(
                f"atom {unknown[0] + 1} ({atoms[unknown[0]]}) has no finite position in the "
                "structure of the molecule: complete it, for example with PDBFixer"
            )
        apart = torch.cdist(self.structure.double(), self.structure.double())
        apart.fill_diagonal_(torch.inf)
        first, second = divmod(int(apart.argmin()), self.n_atoms)
        if self.n_atoms > 1 and apart[first, second] < OVERLAP:
            raise ValueError(
                f"atoms {first + 1} ({atoms[first]}) and {second + 1} ({atoms[second]}) overlap in "
                "the structure of the molecule: give one with all atoms in their places"
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

    @cached_property
    def detached(self) -> Int[Tensor, "rest"]:
        """Atoms to which no way along bonds leads from the first atom."""
        reached = torch.zeros(self.n_atoms, dtype=torch.bool)
        further = reached.clone()
        further[0] = True
        while bool((further & ~reached).any()):
            reached = further
            further = reached | self.bonded[reached].any(dim=0)
        return (~reached).nonzero().flatten()

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

    @cached_property
    def environments(self) -> tuple[int, ...]:
        """One integer per atom, different where elements and bonds around two atoms differ.

        Colours are refined by those of the bonded neighbours until nothing changes.

        Reference: H. L. Morgan (1965), J. Chem. Doc. 5, 107, https://doi.org/10.1021/c160017a018
        """
        neighbours = [row.nonzero().flatten().tolist() for row in self.bonded]
        colours = list(self.elements)
        while True:
            seen = [
                (c, sorted(colours[k] for k in n)) for c, n in zip(colours, neighbours, strict=True)
            ]
            numbers = {key: i for i, key in enumerate(sorted({repr(key) for key in seen}))}
            refined = [numbers[repr(key)] for key in seen]
            if len(set(refined)) == len(set(colours)):
                return tuple(refined)
            colours = refined

    @cached_property
    def stereocentres(self) -> Int[Tensor, "centres 4"]:
        """Atoms with four different neighbours: the centre and three of these."""
        centres = []
        for centre, row in enumerate(self.bonded):
            around = row.nonzero().flatten().tolist()
            if len(around) == 4 and len({self.environments[atom] for atom in around}) == 4:
                centres.append([centre, *around[:3]])
        return torch.tensor(centres, dtype=torch.long).reshape(-1, 4)

    def inverted_centres(
        self, positions: Float[Tensor, "batch atoms 3"]
    ) -> Bool[Tensor, "batch centres"]:
        """Whether each stereocentre has the other handedness than in `structure`."""
        own = _signed_volumes(self.structure[None].to(positions), self.stereocentres)
        return torch.sign(_signed_volumes(positions, self.stereocentres)) * torch.sign(own) < 0

    def unmirrored(
        self, positions: Float[Tensor, "batch atoms 3"]
    ) -> tuple[Float[Tensor, "batch atoms 3"], Bool[Tensor, "batch"]]:
        """The positions, reflected where the first stereocentre is inverted, and where that is."""
        mirrored = self.inverted_centres(positions)[:, :1].any(dim=1)
        return torch.where(mirrored[:, None, None], -positions, positions), mirrored

    def distorted(self, n: int, generator: torch.Generator) -> Float64[Tensor, "n atoms 3"]:
        """`n` copies of the structure, each atom moved by `DISTORTION` on every axis."""
        shape = (n, self.n_atoms, 3)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return self.structure.double() + DISTORTION * noise

    def roles(self, potential: Potential) -> tuple[int, ...]:
        """One integer per atom, the same for atoms whose exchange leaves the energy unchanged.

        Candidates are atoms of one element with the same bonded neighbours, such as the hydrogens
        of a methyl group, or, where bonds do not connect all atoms, all atoms of one element; the
        energy itself decides, on distorted structures.
        """
        roles = list(range(self.n_atoms))
        structures = self.distorted(4, torch.Generator().manual_seed(0))
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
        if self.elements[first] != self.elements[second]:
            return False
        others = [atom for atom in range(self.n_atoms) if atom not in (first, second)]
        same_neighbours = bool((self.bonded[first] == self.bonded[second])[others].all())
        return same_neighbours or len(self.detached) > 0


def full_recipe(recipe: Mapping[str, Any], alike: bool = False) -> dict[str, Any]:
    """The recipe of a molecule with everything filled in that it leaves open.

    Where all atoms are `alike` there are no collective vectors.
    """
    network = dict(recipe.get("network", {}))
    if network.get("kind", NETWORK["kind"]) == NETWORK["kind"]:
        width = {"collective_width": 0} if alike else {}
        network = {**NETWORK, **width, **network}
    return {**RECIPE, **recipe, "network": network}


def _signed_volumes(
    positions: Float[Tensor, "batch atoms 3"], centres: Int[Tensor, "centres 4"]
) -> Float[Tensor, "batch centres"]:
    """The volume spanned by three neighbours of every centre, with a sign."""
    arms = positions[:, centres[:, 1:]] - positions[:, centres[:, :1]]
    return torch.linalg.det(arms)
