"""Energies and forces of an OpenMM System, frame by frame, as NumPy arrays.

Energies are in kJ/mol and forces in kJ/mol/nm, as in OpenMM. Free of torch, so that worker
processes start quickly.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import openmm

Frames = tuple[np.ndarray, np.ndarray | None]

ONE_THREAD = {"CPU": {"Threads": "1"}}  # a small molecule is slower on several


class FrameEvaluator:
    """One OpenMM context that is reused for every frame."""

    def __init__(
        self, system: openmm.System, platform: str, properties: dict[str, str] | None = None
    ):
        mm = import_openmm()
        if properties is None:
            properties = ONE_THREAD.get(platform, {})
        integrator = mm.VerletIntegrator(0.001)
        self.context = mm.Context(system, integrator, find_platform(platform), properties)

    def evaluate(self, positions: np.ndarray, with_forces: bool) -> Frames:
        """Returns energies and, if wanted, forces: NaN where the positions or OpenMM give NaN."""
        energies = np.full(len(positions), np.nan)
        forces = np.full(positions.shape, np.nan) if with_forces else None
        for i in np.flatnonzero(np.isfinite(positions).all((1, 2))):
            state = self._state(positions[i], with_forces)
            if state is None:
                continue
            energies[i] = state.getPotentialEnergy()._value
            if forces is not None:
                forces[i] = state.getForces(asNumpy=True)._value
        return energies, forces

    def _state(self, positions: np.ndarray, with_forces: bool) -> openmm.State | None:
        """Returns the state at the positions, or None if OpenMM refuses it for a NaN."""
        try:
            self.context.setPositions(positions)
            return self.context.getState(energy=True, forces=with_forces)
        except import_openmm().OpenMMException as error:
            if "nan" not in str(error).lower():
                raise
            return None


class Worker:
    """The evaluator of a worker process, made once when the process starts."""

    evaluator: FrameEvaluator

    @classmethod
    def start(cls, system_xml: str, platform: str, properties: dict[str, str] | None) -> None:
        """Makes the evaluator from a serialized System."""
        system = import_openmm().XmlSerializer.deserialize(system_xml)
        cls.evaluator = FrameEvaluator(system, platform, properties)

    @classmethod
    def evaluate(cls, positions: np.ndarray, with_forces: bool) -> Frames:
        """Returns what `FrameEvaluator.evaluate` returns."""
        return cls.evaluator.evaluate(positions, with_forces)


def import_openmm() -> ModuleType:
    """Returns the module openmm, or explains how to install it."""
    try:
        import openmm
    except ImportError as error:
        raise ImportError(
            "molecular potentials need OpenMM, which is not installed: pip install openmm"
        ) from error
    return openmm


def find_platform(name: str) -> openmm.Platform:
    """Returns the OpenMM platform of that name."""
    platform = import_openmm().Platform
    known = [platform.getPlatform(i).getName() for i in range(platform.getNumPlatforms())]
    if name not in known:
        raise ValueError(
            f"OpenMM has no platform {name!r} here: choose one of {', '.join(known)}, or install "
            "the OpenMM build that has it"
        )
    return platform.getPlatformByName(name)
