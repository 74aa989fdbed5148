"""Any OpenMM System as a potential, evaluated by OpenMM itself."""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from boltztilt.energy import Potential
from boltztilt.potentials.openmm_frames import FrameEvaluator, Frames, Worker, import_openmm

if TYPE_CHECKING:
    import openmm

EXTERNAL_FORCES = ("CustomExternalForce", "CustomCVForce")  # may see absolute positions

SYMMETRY_TOLERANCE = 0.1
"""Largest change of the energy, in kT, under a motion that is said to leave it unchanged."""


class OpenMMSource(NamedTuple):
    """The OpenMM System behind a potential and its temperature in kelvin: what dynamics needs."""

    system: openmm.System
    temperature: float


class OpenMMPotential(Potential):
    """The energy of an OpenMM System, U(x) / kT, frame by frame over reused contexts.

    Positions are in nm, energies in kT, forces in kT/nm. Works with any force, one frame after
    the other; `boltztilt.potentials.molecular` is much faster where it knows the forces. Energies
    carry no autograd graph. Frames of non-finite energy are returned as they are, with forces of
    zero; so are frames at which OpenMM finds a NaN.

    Args:
        system: the OpenMM System, without constraints and virtual sites.
        temperature: in kelvin.
        platform: an OpenMM platform; "Reference" computes in double precision.
        properties: properties of the platform; by default one thread on the CPU platform.
        n_workers: number of processes with a context each; 1 computes in this process. Scripts
            that use more need the usual `if __name__ == "__main__":`.
        centered: whether the energy is unchanged under translation and rotation; by default so
            unless the System holds a CustomExternalForce or a CustomCVForce.
        mirror_symmetric: whether the energy is unchanged under reflection.
    """

    n_dims = 3

    def __init__(
        self,
        system: openmm.System,
        temperature: float,
        platform: str = "Reference",
        properties: dict[str, str] | None = None,
        n_workers: int = 1,
        centered: bool | None = None,
        mirror_symmetric: bool = False,
    ):
        if n_workers < 1:
            raise ValueError(f"n_workers must be at least 1, got {n_workers}")
        check_system(system)
        self.kt = thermal_energy(temperature)
        self.source = OpenMMSource(system, temperature)
        self.n_atoms = system.getNumParticles()
        self.n_workers = n_workers
        self.centered = not external_forces(system) if centered is None else centered
        self.mirror_symmetric = mirror_symmetric
        self._settings = (platform, properties)
        self._evaluator = FrameEvaluator(system, platform, properties)

    def energy(self, positions: Float[Tensor, "batch atoms 3"]) -> Float[Tensor, "batch"]:
        energies = self._evaluate(positions, with_forces=False)[0]
        return (torch.from_numpy(energies) / self.kt).to(positions)

    def energy_and_force(
        self, positions: Float[Tensor, "batch atoms 3"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch atoms 3"]]:
        energies, forces = self._evaluate(positions, with_forces=True)
        energy = (torch.from_numpy(energies) / self.kt).to(positions)
        return energy, finite_force(energy, (torch.from_numpy(forces) / self.kt).to(positions))

    def close(self) -> None:
        """Ends the worker processes; the next evaluation would start new ones."""
        pool = self.__dict__.pop("_pool", None)
        if pool is not None:
            pool.shutdown()

    def __enter__(self) -> OpenMMPotential:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _evaluate(self, positions: Tensor, with_forces: bool) -> Frames:
        check_atoms(self.n_atoms, positions)
        frames = positions.detach().double().cpu().numpy()
        if self.n_workers == 1 or len(frames) <= self.n_workers:
            return self._evaluator.evaluate(frames, with_forces)
        parts = np.array_split(frames, self.n_workers)
        results = list(self._pool.map(Worker.evaluate, parts, [with_forces] * len(parts)))
        energies = np.concatenate([energies for energies, _ in results])
        forces = [forces for _, forces in results if forces is not None]
        return energies, np.concatenate(forces) if forces else None

    @cached_property
    def _pool(self) -> ProcessPoolExecutor:
        xml = import_openmm().XmlSerializer.serialize(self.source.system)
        return ProcessPoolExecutor(
            self.n_workers, get_context("spawn"), Worker.start, (xml, *self._settings)
        )


def check_system(system: Any) -> None:
    """Raises unless all coordinates of an OpenMM System are free."""
    mm = import_openmm()
    if not isinstance(system, mm.System):
        raise TypeError(f"expected an openmm.System, got {type(system).__name__}")
    n_atoms = system.getNumParticles()
    if n_atoms < 2:
        raise ValueError(f"a molecule needs at least 2 atoms, the System has {n_atoms}")
    if system.getNumConstraints():
        raise ValueError(
            f"the System has {system.getNumConstraints()} constraints, which leave no density over "
            "all positions: create it with constraints=None and rigidWater=False"
        )
    sites = [i for i in range(n_atoms) if system.isVirtualSite(i)]
    if sites:
        raise ValueError(
            f"particle {sites[0]} of the System is a virtual site ({len(sites)} in all), whose "
            "position is not free: use a force field without virtual sites"
        )
    masses = [system.getParticleMass(i).value_in_unit(mm.unit.dalton) for i in range(n_atoms)]
    frozen = [i for i in range(n_atoms) if not masses[i] > 0]
    if frozen:
        raise ValueError(
            f"particle {frozen[0]} of the System has no mass ({len(frozen)} in all), by which "
            "OpenMM holds it in place: give all atoms their masses"
        )


def thermal_energy(temperature: float) -> float:
    """Returns kT in kJ/mol at a temperature in kelvin."""
    import_openmm()
    from openmm import unit

    if not (temperature > 0.0 and math.isfinite(temperature)):
        raise ValueError(f"the temperature must be positive and finite, got {temperature} K")
    gas_constant = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)
    return gas_constant * temperature


def check_atoms(n_atoms: int, positions: Tensor) -> None:
    """Raises ValueError unless the positions are those of n_atoms atoms."""
    if positions.shape[1:] != (n_atoms, 3):
        raise ValueError(
            f"positions of shape {tuple(positions.shape)} do not fit the System: expected "
            f"(batch, {n_atoms}, 3), in nm and in the order of its particles"
        )


def external_forces(system: openmm.System) -> list[str]:
    """Returns the names of the forces that may depend on absolute positions."""
    names = [type(force).__name__ for force in system.getForces()]
    return [name for name in names if name in EXTERNAL_FORCES]


def finite_force(
    energy: Float[Tensor, "batch"], force: Float[Tensor, "batch atoms 3"]
) -> Float[Tensor, "batch atoms 3"]:
    """Returns the forces, zero for frames whose energy or force is not finite."""
    finite = torch.isfinite(energy) & torch.isfinite(force).flatten(1).all(1)
    return torch.where(finite[:, None, None], force, 0.0)
