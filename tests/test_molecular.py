"""Alanine dipeptide against OpenMM's Reference platform, and frames that are no numbers."""

import math
import shutil
import subprocess
import sys
from importlib.resources import files

import openmm as mm
import pytest
import torch
from dipeptides import (
    FORCE_FIELDS,
    TEMPERATURE,
    dipeptide,
    distorted,
    dynamics,
    force_deviation,
    reference,
    translated,
    with_force,
)

from boltztilt.energy import Potential
from boltztilt.potentials.molecular import molecular_potential
from boltztilt.potentials.openmm_potential import OpenMMPotential
from boltztilt.testing import check_potential

LARGEST_ENERGY = 1e7  # kT; above it float64 does not resolve 1e-4 kT after a sum


def assert_agrees(name: str, frames: torch.Tensor) -> None:
    """Energies within 1e-4 kT and forces within 1e-4 of OpenMM's Reference platform."""
    energy, force = translated(name).energy_and_force(frames)
    expected, expected_force = reference(name).energy_and_force(frames)
    resolved = expected.abs() < LARGEST_ENERGY
    assert resolved.sum() > 0.8 * len(frames)
    assert (energy - expected)[resolved].abs().max() < 1e-4
    torch.testing.assert_close(energy, expected, rtol=1e-10, atol=1e-4)
    assert force_deviation(force, expected_force) < 1e-4


@pytest.mark.parametrize("name", ["vacuum", "obc"])
def test_energies_and_forces_of_dynamics_are_those_of_openmm(name):
    assert_agrees(name, dynamics(200))


@pytest.mark.parametrize("name", ["vacuum", "obc"])
@pytest.mark.parametrize("noise", [0.02, 0.05, 0.1])
def test_energies_and_forces_of_distorted_frames_are_those_of_openmm(name, noise):
    assert_agrees(name, distorted(200, noise))


def test_custom_force_of_obc2_agrees_at_all_distortions():
    """Few frames: OpenMM's Reference platform needs milliseconds for a custom force."""
    frames = [dynamics(20), *(distorted(20, noise) for noise in (0.02, 0.05, 0.1))]
    assert_agrees("obc2", torch.cat(frames))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORCE_FIELDS)
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05, 0.1])
def test_a_thousand_frames_agree_with_openmm(name, noise):
    frames = dynamics(1000)
    torch.manual_seed(0)
    assert_agrees(name, frames + noise * torch.randn_like(frames))


def test_solvent_and_every_force_matter_for_the_agreement():
    """What the comparison would see if a force were left out: far more than its tolerance."""
    frames = dynamics(20)
    complete = reference("obc").energy(frames)
    for index, force in enumerate(dipeptide().getForces()):
        if isinstance(force, mm.CMMotionRemover):
            continue
        system = dipeptide()
        system.removeForce(index)
        missing = molecular_potential(system, TEMPERATURE).energy(frames) - complete
        assert missing.abs().min() > 0.1


def test_single_precision_keeps_the_energies_of_dynamics_to_a_thousandth():
    frames = dynamics(200)
    energy, force = translated("obc").energy_and_force(frames.float())
    expected, expected_force = reference("obc").energy_and_force(frames)
    assert energy.dtype == force.dtype == torch.float32
    assert (energy - expected).abs().max() < 1e-3
    assert force_deviation(force, expected_force) < 1e-4


@pytest.mark.parametrize("name", FORCE_FIELDS)
def test_passes_the_battery(name):
    check_potential(translated(name), distorted(2, 0.005), species=range(22), tolerance=1e-5)


def test_openmm_passes_the_battery():
    check_potential(reference("obc"), distorted(2, 0.005), species=range(22), tolerance=1e-5)


@pytest.mark.parametrize("name", FORCE_FIELDS)
def test_analytic_force_equals_autograd(name, dtype):
    frames = distorted(5, 0.01).to(dtype)
    energy, force = translated(name).energy_and_force(frames)
    by_autograd, gradient = Potential.energy_and_force(translated(name), frames)
    torch.testing.assert_close(energy, by_autograd)
    assert force_deviation(force, gradient) < (1e-4 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("name", ["obc", "obc2"])
def test_solvent_of_an_atom_inside_another_agrees(name):
    """The two ways to write the solvent differ there."""
    system = dipeptide(name)
    for index in reversed(range(system.getNumForces())):
        if not isinstance(system.getForce(index), mm.GBSAOBCForce | mm.CustomGBForce):
            system.removeForce(index)
    frames = dynamics(5).clone()
    frames[:, 0] = frames[:, 4] + torch.tensor([0.01, 0.005, 0.0])
    energy, force = molecular_potential(system, TEMPERATURE).energy_and_force(frames)
    expected, expected_force = OpenMMPotential(system, TEMPERATURE).energy_and_force(frames)
    torch.testing.assert_close(energy, expected, rtol=0.0, atol=1e-9)
    assert force_deviation(force, expected_force) < 1e-9


@pytest.mark.parametrize("n_threads", [1, 3])
def test_large_batch_equals_its_parts(n_threads):
    frames, before = distorted(700, 0.01), torch.get_num_threads()
    torch.set_num_threads(n_threads)
    energy, force = translated("obc").energy_and_force(frames)
    torch.set_num_threads(before)
    single = [translated("obc").energy_and_force(frame[None]) for frame in frames[::50]]
    torch.testing.assert_close(energy[::50], torch.cat([energy for energy, _ in single]))
    torch.testing.assert_close(force[::50], torch.cat([force for _, force in single]))


def test_lower_precision_of_matrix_products_does_not_reach_the_energies(monkeypatch):
    """TensorFloat32 or bfloat16 products, a usual setting, would be wrong by about 1 kT."""
    frames = distorted(20, 0.01).float()
    exact = translated("obc").energy(frames.double()).float()
    assert not torch.equal(translated("obc").energy(frames), exact)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert torch.equal(translated("obc").energy(frames), exact)


# shapes in signatures are enforced in this process, which torch.compile cannot trace
COMPARISON = """
import sys
import torch
from openmm import app
from boltztilt.potentials.molecular import molecular_potential

structure = app.PDBFile(sys.argv[1])
force_field = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
system = force_field.createSystem(structure.topology, constraints=None)
start = torch.tensor(structure.getPositions(asNumpy=True)._value)
frames = start + 0.01 * torch.randn(400, 22, 3, dtype=torch.float64)
frames[3, 0] = frames[3, 1]
eager, compiled = (molecular_potential(system, 300.0, compile=wanted) for wanted in (False, True))
for call in ("energy", "energy_and_force"):
    expected, found = getattr(eager, call)(frames), getattr(compiled, call)(frames)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-9, equal_nan=True)
assert len(found[0]) == 400
leaf = frames.requires_grad_(True)
(gradient,) = torch.autograd.grad(compiled.energy(leaf[4:9]).sum(), leaf)
torch.testing.assert_close(-gradient[4:9], found[1][4:9])
"""


@pytest.mark.slow
def test_compiled_energies_and_forces_are_the_same():
    if not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    command = [sys.executable, "-c", COMPARISON, str(files("boltztilt.systems") / "aldp.pdb")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_phase_that_is_not_straight_breaks_the_mirror_symmetry():
    force = mm.PeriodicTorsionForce()
    force.addTorsion(4, 6, 8, 14, 2, 1.0, 20.0)
    force.addTorsion(14, 8, 6, 4, 3, -0.5, 7.0)
    system, frames = with_force(force), dynamics(20)
    potential = molecular_potential(system, TEMPERATURE)
    energy, forces = potential.energy_and_force(frames)
    expected, expected_forces = OpenMMPotential(system, TEMPERATURE).energy_and_force(frames)
    torch.testing.assert_close(energy, expected, rtol=0.0, atol=1e-9)
    assert force_deviation(forces, expected_forces) < 1e-9
    assert not potential.mirror_symmetric
    assert translated("vacuum").mirror_symmetric
    assert (potential.energy(-frames) - energy).abs().min() > 0.01


def test_worker_processes_give_the_same_numbers():
    frames = distorted(9, 0.02)
    with OpenMMPotential(dipeptide(), TEMPERATURE, n_workers=2) as potential:
        energy, force = potential.energy_and_force(frames)
        assert torch.equal(potential.energy(frames), energy)
        processes = list(potential._pool._processes.values())
    expected, expected_force = reference("obc").energy_and_force(frames)
    assert torch.equal(energy, expected)
    assert torch.equal(force, expected_force)
    assert len(processes) == 2
    assert not any(process.is_alive() for process in processes)


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_frames_that_are_not_numbers_spare_the_others(platform):
    frames = dynamics(20)[:3].clone()
    frames[1, 3, 0] = math.nan
    potential = OpenMMPotential(dipeptide(), TEMPERATURE, platform)
    for one in (potential, translated("obc")):
        energy, force = one.energy_and_force(frames)
        assert torch.isfinite(energy).tolist() == [True, False, True]
        assert (force[1] == 0).all()
        torch.testing.assert_close(
            energy[::2], reference("obc").energy(frames[::2]), rtol=1e-4, atol=1e-3
        )


def test_overlapping_atoms_have_no_finite_energy_and_no_force(dtype):
    frames = dynamics(20)[:2].clone()
    frames[0, 0] = frames[0, 21]
    for potential in (translated("obc"), reference("obc")):
        energy, force = potential.energy_and_force(frames.to(dtype))
        assert torch.isfinite(energy).tolist() == [False, True]
        assert (force[0] == 0).all()


def test_nan_found_by_openmm_is_a_nan_energy_and_other_failures_are_raised(monkeypatch):
    potential = OpenMMPotential(dipeptide(), TEMPERATURE)

    class Failing:
        message = "Particle coordinate is NaN"

        def setPositions(self, positions):
            raise mm.OpenMMException(self.message)

    monkeypatch.setattr(potential._evaluator, "context", Failing())
    assert potential.energy(dynamics(20)[:2]).isnan().all()
    monkeypatch.setattr(Failing, "message", "out of memory")
    with pytest.raises(mm.OpenMMException, match="out of memory"):
        potential.energy(dynamics(20)[:2])


@pytest.mark.parametrize("temperature", [0.0, -300.0, math.nan, math.inf])
@pytest.mark.parametrize("make", [molecular_potential, OpenMMPotential])
def test_temperature_must_be_positive(make, temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        make(dipeptide(), temperature)


@pytest.mark.parametrize("potential", [translated, reference])
def test_wrong_number_of_atoms_is_refused(potential):
    with pytest.raises(ValueError, match=r"\(1, 21, 3\).*expected \(batch, 22, 3\)"):
        potential("obc").energy(torch.zeros(1, 21, 3))


def test_unknown_platform_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'Abacus'.*Reference"):
        OpenMMPotential(dipeptide(), TEMPERATURE, "Abacus")


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="n_workers must be at least 1, got 0"):
        OpenMMPotential(dipeptide(), TEMPERATURE, n_workers=0)
