"""What of an OpenMM System has a formula in torch, falls back to OpenMM, or is refused."""

import sys

import openmm as mm
import pytest
import torch
from dipeptides import TEMPERATURE, dipeptide, dynamics, reference, translated, with_force
from openmm import app

from boltztilt.potentials.force_terms import PeriodicTorsions
from boltztilt.potentials.molecular import molecular_potential
from boltztilt.potentials.openmm_potential import OpenMMPotential


def stretched(n: int = 22) -> mm.CustomBondForce:
    force = mm.CustomBondForce("10*(r-0.5)^2")
    force.addBond(0, n - 1)
    return force


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


@pytest.mark.parametrize("make", [molecular_potential, OpenMMPotential])
def test_constraints_are_refused_with_the_remedy(make):
    with pytest.raises(ValueError, match=r"12 constraints.*constraints=None"):
        make(dipeptide(constraints=app.HBonds), TEMPERATURE)


@pytest.mark.parametrize("make", [molecular_potential, OpenMMPotential])
def test_frozen_atoms_are_refused(make):
    system = dipeptide()
    system.setParticleMass(4, 0.0)
    with pytest.raises(ValueError, match=r"particle 4 .* has no mass \(1 in all\)"):
        make(system, TEMPERATURE)


@pytest.mark.parametrize("make", [molecular_potential, OpenMMPotential])
def test_virtual_sites_are_refused(make):
    system = dipeptide()
    system.setParticleMass(3, 0.0)
    system.setVirtualSite(3, mm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    with pytest.raises(ValueError, match="particle 3 of the System is a virtual site"):
        make(system, TEMPERATURE)


def test_what_is_not_a_system_is_refused():
    with pytest.raises(TypeError, match=r"expected an openmm\.System, got str"):
        molecular_potential("aldp.pdb", TEMPERATURE)


def test_system_without_forces_is_refused():
    system = mm.System()
    for _ in range(2):
        system.addParticle(1.0)
    with pytest.raises(ValueError, match="has no force"):
        molecular_potential(system, TEMPERATURE)


def test_missing_openmm_is_named(monkeypatch):
    system = dipeptide()
    monkeypatch.setitem(sys.modules, "openmm", None)
    with pytest.raises(ImportError, match="pip install openmm"):
        molecular_potential(system, TEMPERATURE)
