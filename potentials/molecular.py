"""A molecule with a classical force field, described by an OpenMM System."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from boltztilt.energy import Potential
from boltztilt.potentials.force_terms import Term
from boltztilt.potentials.openmm_potential import (
    OpenMMPotential,
    check_atoms,
    check_system,
    finite_force,
    thermal_energy,
)
from boltztilt.potentials.openmm_translation import translate

if TYPE_CHECKING:
    import openmm

PAIR_VALUES = {"cpu": 2**17, "cuda": 2**24}  # in one tensor: what stays in the cache, in memory


def molecular_potential(
    system: openmm.System, temperature: float, **options: Any
) -> ForceFieldPotential | OpenMMPotential:
    """Returns the energy of an OpenMM System in kT, for positions in nm.

    By torch in batches if every force of the System has a formula there, else by OpenMM, with a
    warning that names the force.

    Args:
        system: the System, without constraints and virtual sites.
        temperature: in kelvin.
        options: further arguments of OpenMMPotential, used only if OpenMM computes the energy.
    """
    check_system(system)
    terms, untranslated = translate(system, thermal_energy(temperature))
    if not untranslated:
        return ForceFieldPotential(terms, system.getNumParticles())
    forces = "; ".join(f"{name}: {reason}" for name, reason in untranslated.items())
    warnings.warn(
        f"OpenMM computes the energy frame by frame, which is slow ({forces})", stacklevel=2
    )
    return OpenMMPotential(system, temperature, **options)


class ForceFieldPotential(Potential):
    """A sum of force-field terms, evaluated for whole batches and differentiable.

    Bonds, angles, torsions, Coulomb, Lennard-Jones and generalised Born energies, see
    `boltztilt.potentials.force_terms` and `boltztilt.potentials.nonbonded` for the formulas.
    Positions are in nm, energies in kT, forces in kT/nm; parameters are kept in float64 and
    rounded to the precision of the positions. Overlapping atoms give infinite or NaN energies,
    with forces of zero.
    """

    n_dims = 3
    centered = True

    def __init__(self, terms: list[Term], n_atoms: int):
        if not terms:
            raise ValueError(
                "the System has no force: add forces, or use a ForceField to create it"
            )
        self.terms = terms
        self.n_atoms = n_atoms
        self.mirror_symmetric = all(term.mirror_symmetric for term in terms)

    def energy(self, positions: Float[Tensor, "batch atoms 3"]) -> Float[Tensor, "batch"]:
        energies = [
            torch.stack([term.energy(part) for term in self.terms]).sum(0)
            for part in self._parts(positions)
        ]
        return torch.cat(energies)

    def energy_and_force(
        self, positions: Float[Tensor, "batch atoms 3"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch atoms 3"]]:
        parts = [self._part_energy_and_force(part) for part in self._parts(positions.detach())]
        energies, forces = zip(*parts, strict=True)
        energy = torch.cat(energies)
        return energy, finite_force(energy, torch.cat(forces))

    def _part_energy_and_force(
        self, positions: Float[Tensor, "batch atoms 3"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch atoms 3"]]:
        parts = [term.energy_and_force(positions) for term in self.terms]
        energies, forces = zip(*parts, strict=True)
        return torch.stack(energies).sum(0), torch.stack(forces).sum(0)

    def _parts(
        self, positions: Float[Tensor, "batch atoms 3"]
    ) -> tuple[Float[Tensor, "part atoms 3"], ...]:
        """Returns the batch in parts small enough for the cache of the processor."""
        check_atoms(self.n_atoms, positions)
        n_pairs = self.n_atoms * (self.n_atoms - 1) // 2
        size = PAIR_VALUES.get(positions.device.type, PAIR_VALUES["cuda"]) // n_pairs
        return positions.split(max(size, 1))
