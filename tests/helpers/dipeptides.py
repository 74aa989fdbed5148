"""Alanine dipeptide: its force fields in OpenMM and in torch, and frames of its dynamics."""

import math
from functools import cache
from importlib.resources import files

import numpy as np
import openmm as mm
import torch
from openmm import app, unit

from boltztilt.potentials.molecular import ForceFieldPotential, molecular_potential
from boltztilt.potentials.openmm_potential import OpenMMPotential

TEMPERATURE = 300.0


FORCE_FIELDS = {
    "vacuum": ("amber99sbildn.xml",),
    "obc": ("amber99sbildn.xml", "amber99_obc.xml"),
    "obc2": ("amber14-all.xml", "implicit/obc2.xml"),
}


@cache
def structure() -> app.PDBFile:
    return app.PDBFile(str(files("boltztilt.systems") / "aldp.pdb"))


@cache
def force_field(name: str) -> app.ForceField:
    return app.ForceField(*FORCE_FIELDS[name])


def dipeptide(name: str = "obc", **options) -> mm.System:
    options = {"constraints": None, "nonbondedMethod": app.NoCutoff} | options
    return force_field(name).createSystem(structure().topology, **options)


@cache
def translated(name: str) -> ForceFieldPotential:
    return molecular_potential(dipeptide(name), TEMPERATURE)


@cache
def reference(name: str) -> OpenMMPotential:
    return OpenMMPotential(dipeptide(name), TEMPERATURE)


@cache
def dynamics(n: int, name: str = "obc") -> torch.Tensor:
    """Frames of Langevin dynamics at 300 K, 20 fs apart, after 1 ps."""
    integrator = mm.LangevinMiddleIntegrator(
        TEMPERATURE * unit.kelvin, 5 / unit.picosecond, 1 * unit.femtosecond
    )
    integrator.setRandomNumberSeed(1)
    platform = mm.Platform.getPlatformByName("Reference")
    context = mm.Context(dipeptide(name), integrator, platform)
    context.setPositions(structure().positions)
    context.setVelocitiesToTemperature(TEMPERATURE, 1)
    integrator.step(1000)
    frames = []
    for _ in range(n):
        integrator.step(20)
        state = context.getState(positions=True)
        frames.append(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    return torch.from_numpy(np.stack(frames))


def distorted(n: int, noise: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    frames = dynamics(20).repeat(math.ceil(n / 20), 1, 1)[:n]
    return frames + noise * torch.randn(frames.shape, generator=generator, dtype=frames.dtype)


def force_deviation(force: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest relative deviation of the forces of a frame."""
    difference = (force - expected).flatten(1).norm(dim=1)
    return (difference / expected.flatten(1).norm(dim=1)).max().item()


def with_force(force: mm.Force) -> mm.System:
    system = dipeptide("vacuum")
    system.addForce(force)
    return system
