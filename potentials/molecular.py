"""A molecule with a classical force field, described by an OpenMM System."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from boltztilt.energy import Potential
from boltztilt.hardware import full_precision_products
from boltztilt.networks.compilation import compiled_for
from boltztilt.parallel import in_threads
from boltztilt.potentials.force_terms import Term, total
from boltztilt.potentials.openmm_potential import (
    OpenMMPotential,
    OpenMMSource,
    check_atoms,
    check_system,
    finite_force,
    thermal_energy,
)
from boltztilt.potentials.openmm_translation import translate

if TYPE_CHECKING:
    import openmm

PAIR_VALUES = {"cpu": 2**16, "cuda": 2**20}  # of a part of the batch: a thread's cache holds them
WORTH_COMPILING = 2**20  # frames, for which compiling takes no longer than it saves
VECTOR = 16  # frames that a processor handles at once


def molecular_potential(
    system: openmm.System, temperature: float, compile: bool | None = None, **options: Any
) -> ForceFieldPotential | OpenMMPotential:
    """Returns the energy of an OpenMM System in kT, for positions in nm.

    By torch in batches if every force of the System has a formula there, else by OpenMM, with a
    warning that names the force.

    Args:
        system: the System, without constraints and virtual sites.
        temperature: in kelvin.
        compile: see ForceFieldPotential.
        options: further arguments of OpenMMPotential, used only if OpenMM computes the energy.
    """
    check_system(system)
    terms, untranslated = translate(system, thermal_energy(temperature))
    if not untranslated:
        source = OpenMMSource(system, temperature)
        return ForceFieldPotential(terms, system.getNumParticles(), compile, source)
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
    with forces of zero. Where float32 matrix products are set to less than their full precision,
    the arithmetic is in float64.

    Args:
        terms: what to sum.
        n_atoms: number of atoms.
        compile: use torch.compile: a few times faster after some ten seconds at the first call;
            None compiles once so many frames were evaluated that more are to be expected. Energies
            that autograd has to follow are not compiled.
        source: the OpenMM System that the terms come from, if any; needed for dynamics only.
    """

    n_dims = 3
    centered = True

    def __init__(
        self,
        terms: list[Term],
        n_atoms: int,
        compile: bool | None = None,
        source: OpenMMSource | None = None,
    ):
        if not terms:
            raise ValueError("the System has no force: create it with a ForceField, or add forces")
        self.terms = terms
        self.n_atoms = n_atoms
        self.mirror_symmetric = all(term.mirror_symmetric for term in terms)
        self.compile = compile
        self.source = source
        self.n_evaluated = 0  # structures so far: from many on, compilation pays
        self._compiled: dict[tuple[Callable, str], Callable] = {}

    def energy(self, positions: Float[Tensor, "batch atoms 3"]) -> Float[Tensor, "batch"]:
        if torch.is_grad_enabled() and positions.requires_grad:
            parts = [self._part_energy(part) for part in self._parts(positions)]
        else:
            parts = self._evaluate(self._part_energy, positions)
        return torch.cat(parts)[: len(positions)].to(positions.dtype)

    def energy_and_force(
        self, positions: Float[Tensor, "batch atoms 3"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch atoms 3"]]:
        parts = self._evaluate(self._part_energy_and_force, positions.detach())
        energies, forces = zip(*parts, strict=True)
        energy = torch.cat(energies)[: len(positions)].to(positions.dtype)
        return energy, torch.cat(forces)[: len(positions)].to(positions.dtype)

    def _evaluate(self, function: Callable, positions: Tensor) -> list:
        """Returns what a function gives for every part, compiled if wanted."""
        self.n_evaluated += len(positions)
        expected = self.n_evaluated > WORTH_COMPILING
        compile = expected if self.compile is None else self.compile
        if compile:
            key = (function, positions.device.type)
            if key not in self._compiled:
                self._compiled[key] = compiled_for(function, positions.device)
            function = self._compiled[key]
        parts = self._parts(positions, equal=compile)
        tasks = [partial(_without_graph, function, part) for part in parts]
        return list(in_threads(tasks, positions.device))

    def _part_energy(self, positions: Float[Tensor, "part atoms 3"]) -> Float[Tensor, "part"]:
        return total([term.energy(positions) for term in self.terms])

    def _part_energy_and_force(
        self, positions: Float[Tensor, "part atoms 3"]
    ) -> tuple[Float[Tensor, "part"], Float[Tensor, "part atoms 3"]]:
        parts = [term.energy_and_force(positions) for term in self.terms]
        energies, forces = zip(*parts, strict=True)
        energy, force = total(energies), total(forces)
        return energy, finite_force(energy, force)

    def _parts(
        self, positions: Float[Tensor, "batch atoms 3"], equal: bool = False
    ) -> list[Float[Tensor, "part atoms 3"]]:
        """Returns the batch in parts, in memory with the frames last, as the terms need it.

        If `equal`, the last part is filled up with its last frame: one shape to compile for.
        """
        check_atoms(self.n_atoms, positions)
        if not full_precision_products():
            positions = positions.double()
        values = PAIR_VALUES.get(positions.device.type, PAIR_VALUES["cuda"])
        n_pairs = self.n_atoms * (self.n_atoms - 1) // 2
        size = max(VECTOR, 2 ** int(math.log2(max(values / n_pairs, 1))))  # divides most batches
        if equal and len(positions) % size:
            missing = size - len(positions) % size
            positions = torch.cat([positions, positions[-1:].expand(missing, -1, -1)])
        parts = positions.split(size)
        return [part.permute(1, 2, 0).contiguous().permute(2, 0, 1) for part in parts]


def _without_graph(function: Callable, positions: Tensor) -> Any:
    """What the function returns, without a graph, in whatever thread it runs."""
    with torch.no_grad():
        return function(positions)
