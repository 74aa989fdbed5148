"""Langevin replicas: the right distribution, own seeds, and continuation to the same frames."""

import copy
import math
from dataclasses import replace

import openmm as mm
import pytest
import torch

from boltztilt.analysis.dynamics import (
    Langevin,
    find_source,
    langevin,
    run_replicas,
    thermal,
    with_smallest_mass,
)
from boltztilt.potentials.molecular import molecular_potential
from boltztilt.potentials.openmm_potential import OpenMMSource, thermal_energy
from boltztilt.systems.system import load_system

STIFFNESS, LENGTH = 2.0e5, 0.11  # kJ/mol/nm², nm: a bond to hydrogen
SHORT = Langevin(frame_interval=0.1, settling_time=0.5)


@pytest.fixture(scope="module")
def source():
    """Two atoms and a bond at 300 K."""
    system = mm.System()
    for mass in (12.0, 1.0):
        system.addParticle(mass)
    bond = mm.HarmonicBondForce()
    bond.addBond(0, 1, LENGTH, STIFFNESS)
    system.addForce(bond)
    return OpenMMSource(system, 300.0)


STRUCTURE = torch.tensor([[0.0, 0.0, 0.0], [LENGTH, 0.0, 0.0]])
TWO = STRUCTURE.repeat(2, 1, 1)


def bond_lengths(frames):
    return (frames[..., 1, :] - frames[..., 0, :]).double().norm(dim=-1)


def exact_moments():
    """Mean and standard deviation of r under r² exp(-U(r) / kT)."""
    r = torch.linspace(0.05, 0.2, 40001, dtype=torch.float64)
    weights = r**2 * (-0.5 * STIFFNESS * (r - LENGTH) ** 2 / thermal_energy(300.0)).exp()
    mean = (r * weights).sum() / weights.sum()
    return float(mean), float((((r - mean) ** 2 * weights).sum() / weights.sum()).sqrt())


def test_bond_lengths_follow_the_closed_form(source):
    frames = run_replicas(
        source, STRUCTURE.repeat(8, 1, 1), 1000, settings=replace(SHORT, friction=20.0)
    )
    lengths = bond_lengths(frames)
    mean, sd = exact_moments()
    block_means = lengths.reshape(80, 100).mean(dim=1)
    error = float(block_means.std()) / math.sqrt(80)
    assert abs(float(lengths.mean()) - mean) < 3.5 * error
    assert float(lengths.std()) == pytest.approx(sd, rel=0.05)


def test_velocities_are_thermal(source):
    speeds = [
        thermal(source, STRUCTURE, seed).velocities[0].square().sum() for seed in range(1, 200)
    ]
    kinetic = 0.5 * 12.0 * torch.stack(speeds) / thermal_energy(300.0)
    assert float(kinetic.mean()) == pytest.approx(1.5, abs=3.5 * math.sqrt(1.5 / 199))


def test_interrupted_run_continues_to_the_same_frames(source, tmp_path):
    whole = run_replicas(source, TWO, 50, seed=3, settings=SHORT)
    path = tmp_path / "run.partial.pt"

    def stop(done, total):
        if done > 0.7 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_replicas(source, TWO, 50, seed=3, settings=SHORT, state_path=path, progress=stop)
    seen = []
    continued = run_replicas(
        source, TWO, 50, seed=3, settings=SHORT, state_path=path, resume=True,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert torch.equal(continued, whole)
    assert seen[0][0] > 0.5 * seen[0][1]  # earlier blocks were not repeated
    assert seen[-1][0] == seen[-1][1]
    with pytest.raises(ValueError, match="seed = 3"):
        run_replicas(source, TWO, 50, seed=4, settings=SHORT, state_path=path, resume=True)
    hotter = source._replace(temperature=310.0)
    with pytest.raises(ValueError, match="was made with system = "):
        run_replicas(hotter, TWO, 50, seed=3, settings=SHORT, state_path=path, resume=True)


def test_replicas_and_seeds_differ(source):
    first = run_replicas(source, TWO, 2, seed=0, settings=SHORT)
    other = run_replicas(source, TWO, 2, seed=1, settings=SHORT)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, other)


def test_time_step_that_is_too_long_is_named(source):
    start = thermal(source, STRUCTURE, 1)
    settings = replace(SHORT, time_step=20.0)
    with pytest.raises(ValueError, match="unstable with a time step of 20"):
        langevin(source, start, 2, 20_000, settings, seed=1)


def test_the_centre_of_mass_moves_in_an_external_field(source):
    """OpenMM's remover of its motion, part of what force fields make, would hold it at rest."""
    stiffness = 500.0  # kJ/mol/nm² on each of the two atoms
    held = copy.deepcopy(source.system)
    field = mm.CustomExternalForce(f"{stiffness / 2}*(x^2+y^2+z^2)")
    for atom in range(2):
        field.addParticle(atom)
    held.addForce(field)
    held.addForce(mm.CMMotionRemover())
    frames = run_replicas(
        OpenMMSource(held, 300.0),
        STRUCTURE.repeat(8, 1, 1),
        1000,
        settings=replace(SHORT, friction=20.0),
    )
    centres = frames.mean(dim=2).double().square().sum(dim=-1).reshape(40, -1).mean(dim=1)
    exact = 3 * thermal_energy(300.0) / (2 * stiffness)
    assert abs(centres.mean() - exact) < 4 * centres.std() / math.sqrt(len(centres))


def test_masses_are_raised_in_a_copy(source):
    heavier = with_smallest_mass(source, 4.0)
    masses = [heavier.system.getParticleMass(atom)._value for atom in range(2)]
    assert masses == [12.0, 4.0]
    assert source.system.getParticleMass(1)._value == 1.0


def test_settings_that_make_no_sense_are_refused():
    for name, value in (("time_step", 0.0), ("settling_time", -1.0), ("frame_interval", 0.001)):
        with pytest.raises(ValueError, match=name):
            Langevin(**{name: value})


def test_potentials_know_their_source(source):
    assert find_source(molecular_potential(source.system, 300.0)) == source
    assert find_source(load_system("lj13").potential) is None
