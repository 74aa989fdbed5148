"""Any calculator of ASE as a potential: quantum chemistry, tight binding, learned force fields."""

from __future__ import annotations

import math
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from boltztilt.energy import Potential
from boltztilt.geometry import random_rotation
from boltztilt.potentials.openmm_potential import SYMMETRY_TOLERANCE, check_atoms, finite_force

if TYPE_CHECKING:
    import ase

ANGSTROM_PER_NM = 10.0


class ASEPotential(Potential):
    """The energy of an ASE calculator, U(x) / kT, one frame after the other.

    Positions are in nm, energies in kT, forces in kT/nm (ASE has eV and angstrom). Energies carry
    no autograd graph. Frames at which the calculator fails have the energy NaN and no force; a
    warning tells the first failure.

    Args:
        atoms: what the calculator is to see: elements, charges, magnetic moments; without
            periodic cell and constraints. Its energy has to be finite.
        calculator: any calculator of ASE.
        temperature: in kelvin.
        mirror_symmetric: whether the energy is unchanged under reflection, as it is without
            external fields.
        energy_zero: in eV, subtracted from all energies: total energies of thousands of eV leave
            few digits to float32.
        trap: stiffness in kT/nm² of a spring of every atom to the centre of all, without which
            the atoms of a cluster part for ever.

    Reference:
        Larsen et al. (2017), The atomic simulation environment, J. Phys.: Condens. Matter 29,
        273002, https://doi.org/10.1088/1361-648X/aa680e
    """

    n_dims = 3
    centered = True

    def __init__(
        self,
        atoms: ase.Atoms,
        calculator: Any,
        temperature: float,
        mirror_symmetric: bool = True,
        energy_zero: float = 0.0,
        trap: float = 0.0,
    ):
        check_ase_atoms(atoms)
        if not hasattr(calculator, "get_potential_energy"):
            raise TypeError(f"expected an ASE calculator, got {type(calculator).__name__}")
        if not (temperature > 0.0 and math.isfinite(temperature)):
            raise ValueError(f"the temperature must be positive and finite, got {temperature} K")
        if not (trap >= 0.0 and math.isfinite(trap)):
            raise ValueError(f"trap = {trap}: a stiffness in kT/nm² of 0 or more is needed")
        self.kt = import_ase().units.kB * temperature
        self.n_atoms = len(atoms)
        self.mirror_symmetric = mirror_symmetric
        self.energy_zero = energy_zero
        self.trap = trap
        self._failed = False
        self._atoms = atoms.copy()
        self._atoms.calc = calculator
        self._check_symmetries()

    def energy(self, positions: Float[Tensor, "batch atoms 3"]) -> Float[Tensor, "batch"]:
        return self._evaluate(positions, with_forces=False)[0]

    def energy_and_force(
        self, positions: Float[Tensor, "batch atoms 3"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch atoms 3"]]:
        energy, force = self._evaluate(positions, with_forces=True)
        return energy, finite_force(energy, force)

    def _evaluate(self, positions: Tensor, with_forces: bool) -> tuple[Tensor, Tensor]:
        """Returns energies in kT and forces in kT/nm, zero if they are not wanted."""
        check_atoms(self.n_atoms, positions)
        frames = positions.detach().double().cpu()
        energies = np.full(len(frames), np.nan)
        forces = np.zeros(frames.shape)
        for i, frame in enumerate(frames.numpy()):
            if np.isfinite(frame).all():
                energies[i], forces[i] = self._tried(frame, with_forces)
        from_centre = frames - frames.mean(1, keepdim=True)
        energy = torch.from_numpy((energies - self.energy_zero) / self.kt)
        energy = energy + 0.5 * self.trap * from_centre.square().sum((1, 2))
        force = torch.from_numpy(forces * (ANGSTROM_PER_NM / self.kt)) - self.trap * from_centre
        return energy.to(positions), force.to(positions)

    def _tried(self, frame: np.ndarray, with_forces: bool) -> tuple[float, np.ndarray | float]:
        """Returns what `_calculate` does; the energy NaN where the calculator fails."""
        try:
            return self._calculate(frame, with_forces)
        except Exception as error:  # calculators raise whatever they like
            if not self._failed:
                reason = f"{type(error).__name__}: {error}"
                warnings.warn(
                    f"the calculator failed at a frame, whose energy is NaN ({reason}); further "
                    "failures are counted as non-finite energies and not told",
                    stacklevel=2,
                )
            self._failed = True
            return math.nan, 0.0

    def _calculate(self, frame: np.ndarray, with_forces: bool) -> tuple[float, np.ndarray | float]:
        """Returns energy in eV and forces in eV/angstrom of positions in nm."""
        self._atoms.positions = ANGSTROM_PER_NM * frame
        # forces first: calculators keep the energy that comes with them
        with np.errstate(all="ignore"):
            forces = self._atoms.get_forces() if with_forces else 0.0
            return float(self._atoms.get_potential_energy()), forces

    def _check_symmetries(self) -> None:
        """Raises where the calculator cannot describe the atoms, or breaks a claimed symmetry."""
        start = self._atoms.positions / ANGSTROM_PER_NM
        rotation = random_rotation(3, torch.Generator().manual_seed(0)).numpy()
        moved = {"rotation and translation": (start + 0.1) @ rotation.T}
        if self.mirror_symmetric:
            moved["reflection"] = -start
        try:
            energy, _ = self._calculate(start, with_forces=True)
            changes = {k: self._calculate(v, False)[0] - energy for k, v in moved.items()}
        except Exception as error:
            raise ValueError(
                f"{type(self._atoms.calc).__name__} cannot compute the energy of the given "
                f"structure: {type(error).__name__}: {error}"
            ) from error
        if not math.isfinite(energy):
            raise ValueError(
                f"the energy of the given structure is {energy} eV; give one without overlaps"
            )
        for motion, change in changes.items():
            if not abs(change) <= SYMMETRY_TOLERANCE * self.kt:
                remedy = "pass mirror_symmetric=False" if motion == "reflection" else "remove it"
                raise ValueError(
                    f"the energy changes by {change / self.kt:.3g} kT under {motion}, as in an "
                    f"external field: {remedy}"
                )


def check_ase_atoms(atoms: Any) -> None:
    """Raises unless all coordinates of the atoms are free and in open space."""
    module = import_ase()
    if not isinstance(atoms, module.Atoms):
        raise TypeError(f"expected ase.Atoms, got {type(atoms).__name__}")
    if len(atoms) < 2:
        raise ValueError(f"at least 2 atoms are needed, the given ase.Atoms have {len(atoms)}")
    if atoms.pbc.any():
        raise ValueError(
            "the atoms are in a periodic cell, for which there is no base yet: a molecule or "
            "cluster in open space is needed, set atoms.pbc = False"
        )
    if atoms.constraints:
        kinds = ", ".join(sorted({type(constraint).__name__ for constraint in atoms.constraints}))
        raise ValueError(
            f"the atoms have constraints ({kinds}), which leave no density over all positions: "
            "remove them by atoms.set_constraint()"
        )
    unknown = np.flatnonzero(atoms.numbers == 0)
    if len(unknown):
        raise ValueError(f"atom {unknown[0]} has no element ('X'): set its chemical symbol")


def import_ase() -> ModuleType:
    """Returns the module ase, or explains how to install it."""
    try:
        import ase
        import ase.units
    except ImportError as error:
        raise ImportError(
            "energies from ASE need the package ase: pip install 'boltztilt[ase]'"
        ) from error
    return ase
