"""Alanine dipeptide against OpenMM's Reference platform, and what cannot be evaluated."""

import math
import shutil
import subprocess
import sys
from functools import cache
from importlib.resources import files

import numpy as np
import openmm as mm
import pytest
import torch
from openmm import app, unit

from boltztilt.energy import Potential
from boltztilt.potentials.force_terms import PeriodicTorsions
from boltztilt.potentials.molecular import ForceFieldPotential, molecular_potential
from boltztilt.potentials.openmm_potential import OpenMMPotential
from boltztilt.testing import check_potential

TEMPERATURE = 300.0
FORCE_FIELDS = {
    "vacuum": ("amber99sbildn.xml",),
    "obc": ("amber99sbildn.xml", "amber99_obc.xml"),
    "obc2": ("amber14-all.xml", "implicit/obc2.xml"),
}
LARGEST_ENERGY = 1e7  # kT; above it float64 does not resolve 1e-4 kT after a sum


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


def with_force(force: mm.Force) -> mm.System:
    system = dipeptide("vacuum")
    system.addForce(force)
    return system


def stretched(n: int = 22) -> mm.CustomBondForce:
    force = mm.CustomBondForce("10*(r-0.5)^2")
    force.addBond(0, n - 1)
    return force


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


def test_torsions_of_the_same_atoms_are_evaluated_once():
    (torsions,) = (
        term for term in translated("vacuum").terms if isinstance(term, PeriodicTorsions)
    )
    (force,) = (
        force
        for force in dipeptide("vacuum").getForces()
        if isinstance(force, mm.PeriodicTorsionForce)
    )
    assert torsions.cosines.shape[1] < force.getNumTorsions()


def test_unknown_force_falls_back_to_openmm_with_a_note():
    system, frames = with_force(stretched()), dynamics(20)
    with pytest.warns(UserWarning, match="CustomBondForce"):
        potential = molecular_potential(system, TEMPERATURE)
    assert isinstance(potential, OpenMMPotential)
    assert (potential.centered, potential.mirror_symmetric) == (True, False)
    length = (frames[:, 0] - frames[:, -1]).norm(dim=1)
    added = 10 * (length - 0.5).square() / potential.kt
    torch.testing.assert_close(potential.energy(frames) - reference("vacuum").energy(frames), added)


def test_external_force_is_not_centred():
    force = mm.CustomExternalForce("x^2")
    force.addParticle(0)
    with pytest.warns(UserWarning, match="CustomExternalForce"):
        assert not molecular_potential(with_force(force), TEMPERATURE).centered


def altered(name: str, kind: type[mm.Force], change) -> mm.System:
    """The dipeptide after a change of one of its forces."""
    system = dipeptide(name)
    change(next(force for force in system.getForces() if isinstance(force, kind)))
    return system


NOT_TRANSLATED = {
    "cutoff": lambda: altered(
        "obc", mm.NonbondedForce, lambda force: force.setNonbondedMethod(force.CutoffPeriodic)
    ),
    "offsets": lambda: altered(
        "obc",
        mm.NonbondedForce,
        lambda force: (
            force.addGlobalParameter("scale", 0.5),
            force.addParticleParameterOffset("scale", 0, 0.1, 0.0, 0.0),
        ),
    ),
    "periodic": lambda: altered(
        "obc", mm.HarmonicBondForce, lambda force: force.setUsesPeriodicBoundaryConditions(True)
    ),
    "salt": lambda: dipeptide("obc2", implicitSolventKappa=1.0),
    "surface": lambda: altered(
        "obc2",
        mm.CustomGBForce,
        lambda force: force.setEnergyTermParameters(1, "B^2", force.SingleParticle),
    ),
    "radii": lambda: altered(
        "obc2",
        mm.CustomGBForce,
        lambda force: force.setComputedValueParameters(1, "B", "or+I", force.SingleParticle),
    ),
}


@pytest.mark.parametrize("case", NOT_TRANSLATED)
def test_variants_without_a_formula_fall_back(case):
    with pytest.warns(UserWarning, match=r"NonbondedForce|HarmonicBondForce|CustomGBForce"):
        assert isinstance(molecular_potential(NOT_TRANSLATED[case](), 300.0), OpenMMPotential)


def test_solvent_without_surface_term_and_with_other_dielectrics_is_recognised():
    system = dipeptide("obc2", sasaMethod=None, solventDielectric=10.0, soluteDielectric=2.0)
    frames = dynamics(3)
    expected = OpenMMPotential(system, TEMPERATURE).energy(frames)
    torch.testing.assert_close(
        molecular_potential(system, TEMPERATURE).energy(frames), expected, rtol=0.0, atol=1e-9
    )


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


@pytest.mark.parametrize("make", [molecular_potential, OpenMMPotential])
def test_constraints_are_refused_with_the_remedy(make):
    with pytest.raises(ValueError, match=r"12 constraints.*constraints=None"):
        make(dipeptide(constraints=app.HBonds), TEMPERATURE)


@pytest.mark.parametrize("make", [molecular_potential, OpenMMPotential])
def test_virtual_sites_are_refused(make):
    system = dipeptide()
    system.setParticleMass(3, 0.0)
    system.setVirtualSite(3, mm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    with pytest.raises(ValueError, match="particle 3 of the System is a virtual site"):
        make(system, TEMPERATURE)


@pytest.mark.parametrize("potential", [translated, reference])
def test_wrong_number_of_atoms_is_refused(potential):
    with pytest.raises(ValueError, match=r"\(1, 21, 3\).*expected \(batch, 22, 3\)"):
        potential("obc").energy(torch.zeros(1, 21, 3))


def test_what_is_not_a_system_is_refused():
    with pytest.raises(TypeError, match=r"expected an openmm\.System, got str"):
        molecular_potential("aldp.pdb", TEMPERATURE)


def test_system_without_forces_is_refused():
    system = mm.System()
    for _ in range(2):
        system.addParticle(1.0)
    with pytest.raises(ValueError, match="has no force"):
        molecular_potential(system, TEMPERATURE)


def test_unknown_platform_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'Abacus'.*Reference"):
        OpenMMPotential(dipeptide(), TEMPERATURE, "Abacus")


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="n_workers must be at least 1, got 0"):
        OpenMMPotential(dipeptide(), TEMPERATURE, n_workers=0)


def test_missing_openmm_is_named(monkeypatch):
    system = dipeptide()
    monkeypatch.setitem(sys.modules, "openmm", None)
    with pytest.raises(ImportError, match="pip install openmm"):
        molecular_potential(system, TEMPERATURE)
