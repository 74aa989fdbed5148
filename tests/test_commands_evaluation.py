"""`evaluate` and `reference` from the command line."""

import json
import sys
from functools import partial

import mdtraj
import numpy as np
import openmm.app
import pytest
import torch
from command_line import assert_refused, boltztilt

from boltztilt.analysis import dynamics, tempered
from boltztilt.analysis.reference import Reference
from boltztilt.arguments import next_reference_command
from boltztilt.systems.system import load_system


def test_stochastic_field_is_trained_sampled_and_evaluated(training_words, tmp_path):
    run, output = tmp_path / "run", tmp_path / "out.npz"
    small = ["--set", "network.n_layers=2", "--set", "polish_steps=10"]
    result = boltztilt(*training_words, "-o", run, "--stochastic", *small)
    assert result.exit_code == 0, result.output
    words = ["-n", 40, "--stochastic", "--steps", 5, "-q"]
    result = boltztilt("sample", run, "-o", output, *words)
    assert result.exit_code == 0, result.output
    assert "ESS" not in result.stdout
    with np.load(output) as saved:
        assert "log_weights" not in saved
        assert np.isfinite(saved["energies"]).all()
    result = boltztilt("evaluate", run, "--refine", 4, *words)
    assert result.exit_code == 0, result.output
    report = json.loads((run / "report.json").read_text())
    assert report["stochastic"]
    assert {"raw", "floor"} <= report["energy_w2"].keys()
    assert "ess" not in report
    assert report["refined"]["refine_steps"] == 4
    pictures = {path.name for path in (run / "plots").glob("*.png")}
    assert {"energy.png", "refined_energy.png"} <= pictures
    assert "log_weights.png" not in pictures


def test_evaluate_makes_and_keeps_a_reference(run_folder, tmp_path):
    folder = tmp_path / "evaluation"
    words = ["evaluate", run_folder, "-n", 30, "-o", folder, "--steps", 3, "-q"]
    result = boltztilt(*words)
    assert result.exit_code == 0, result.output
    assert (folder / "reference.npz").exists()
    report = json.loads((folder / "report.json").read_text())
    assert report["n"] == 30
    assert list((folder / "plots").glob("*.png"))
    kept = (folder / "reference.npz").read_bytes()
    assert boltztilt(*words).exit_code == 0
    assert (folder / "reference.npz").read_bytes() == kept
    assert "30 structures, annealed Hamiltonian Monte Carlo" in result.stdout


def test_evaluate_says_that_its_reference_is_not_equilibrated(run_folder, tmp_path):
    system = load_system(run_folder / "system.toml")
    positions = system.base.sample(40, torch.Generator().manual_seed(0))
    energies = system.potential.energy(positions).double()
    Reference(positions, energies, system, {"drift": 12.0}).save(tmp_path / "drifting.npz")
    words = ["evaluate", run_folder, "-n", 30, "--reference", tmp_path / "drifting.npz"]
    result = boltztilt(*words, "-o", tmp_path / "out", "--steps", 3, "-q")
    assert result.exit_code == 0, result.output
    assert "40 structures, given" in result.stdout
    assert "not equilibrated: mean energy drifts by +12.0" in result.stderr


def test_evaluate_refuses_a_file_as_its_folder(run_folder, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert_refused(boltztilt("evaluate", run_folder, "-o", tmp_path / "out"), "out is a file")


def test_evaluate_leaves_foreign_files_alone(run_folder, tmp_path):
    """A report and plots of another program, and a table that is no training log."""
    mine = {"a/report.json": '{"mine": 1}', "b/plots/energy.png": "mine", "c/report.json": "[]"}
    for name, text in mine.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
        words = ["evaluate", run_folder, "-n", 30, "-o", tmp_path / name[0], "-q"]
        assert_refused(boltztilt(*words), "did not write", "-o")
        assert (tmp_path / name).read_text() == text
    folder = tmp_path / "d"
    kept = {"log.csv": "x,y\n1,2\n", "plots/refined_mine.png": "mine"}
    (folder / "plots").mkdir(parents=True)
    for name, text in kept.items():
        (folder / name).write_text(text)
    words = ["evaluate", run_folder, "-n", 30, "--steps", 3, "-o", folder, "-q"]
    for _ in range(2):
        result = boltztilt(*words)
        assert result.exit_code == 0, result.output
    assert {name: (folder / name).read_text() for name in kept} == kept
    assert not (folder / "plots" / "ladder.png").exists()


def test_evaluate_refuses_a_foreign_reference(run_folder, tmp_path):
    np.savez(tmp_path / "other.npz", numbers=np.ones(3))
    words = ["evaluate", run_folder, "-o", tmp_path / "out", "--reference", tmp_path / "other.npz"]
    assert_refused(boltztilt(*words), "other.npz")


def test_a_missing_extra_is_named(run_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert_refused(
        boltztilt("evaluate", run_folder, "-n", 50, "-o", tmp_path / "out", "-q"), "plot"
    )


def test_reference_is_written_and_not_overwritten(system_file, tmp_path):
    output = tmp_path / "reference.npz"
    words = ["reference", system_file, "-n", 100, "-o", output, "-q"]
    result = boltztilt(*words)
    assert result.exit_code == 0, result.output
    assert "virial" in result.stdout
    assert np.load(output)["positions"].shape == (100, 3, 3)
    assert_refused(boltztilt(*words), "reference.npz", "--force")


@pytest.fixture
def water_file(tmp_path):
    """A system TOML of one water molecule, whose dynamics takes a second."""
    topology, system = openmm.app.Topology(), openmm.System()
    residue = topology.addResidue("HOH", topology.addChain())
    bonds, angles = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    for name, mass in (("O", 16.0), ("H1", 1.0), ("H2", 1.0)):
        topology.addAtom(name, openmm.app.Element.getBySymbol(name[0]), residue)
        system.addParticle(mass)
    atoms = list(topology.atoms())
    for hydrogen in (1, 2):
        topology.addBond(atoms[0], atoms[hydrogen])
        bonds.addBond(0, hydrogen, 0.1, 4e5)
    angles.addAngle(1, 0, 2, 1.824, 800.0)
    system.addForce(bonds)
    system.addForce(angles)
    positions = np.array([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [-0.025, 0.097, 0.0]])
    with open(tmp_path / "water.pdb", "w") as file:
        openmm.app.PDBFile.writeFile(topology, 10.0 * positions, file)
    (tmp_path / "water.xml").write_text(openmm.XmlSerializer.serialize(system))
    table = 'pdb = "water.pdb"\nsystem_xml = "water.xml"\ntemperature = 300.0\n'
    (tmp_path / "water.toml").write_text(f"[molecule]\n{table}")
    return tmp_path / "water.toml"


def test_files_of_a_molecule_are_not_replaced(water_file, tmp_path, monkeypatch):
    before = (tmp_path / "water.pdb").read_bytes()
    for verb in ("anneal", "reference"):
        words = [verb, water_file, "-n", 40, "-o", tmp_path / "water.dcd", "--force", "-q"]
        assert_refused(boltztilt(*words), "water.pdb describes", "water_samples")
    assert (tmp_path / "water.pdb").read_bytes() == before
    monkeypatch.chdir(tmp_path)
    result = boltztilt("anneal", "water.toml", "-n", 40, "--steps", 1, "-q")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "water_samples.pdb").exists()


def test_reference_of_a_molecule_survives_an_interruption(water_file, tmp_path, monkeypatch):
    monkeypatch.setattr(tempered, "temper", partial(tempered.temper, n_rounds=10))

    def reference(name, *options):
        return boltztilt("reference", water_file, "-n", 1200, "-o", tmp_path / name, "-q", *options)

    assert reference("whole.dcd").exit_code == 0
    run = dynamics.langevin
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 120:  # 45 replicas: settling, a round of blocks, part of the second
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(dynamics, "langevin", interrupted)
    stopped = reference("again.dcd")
    assert stopped.exit_code == 130
    assert "--resume" in stopped.stderr
    assert_refused(reference("again.dcd"), "again.partial", "--resume", "--force")
    other_seed = reference("again.dcd", "--resume", "--seed", "5")
    assert_refused(other_seed, "tempering.pt was made with seed 0, not 5")
    (tmp_path / "again.dcd").touch()
    assert next_reference_command("water", tmp_path / "again.dcd", 4, 0).endswith("--force")
    (tmp_path / "again.dcd").unlink()
    monkeypatch.setattr(dynamics, "langevin", run)
    result = reference("again.dcd", "--resume")
    assert result.exit_code == 0, result.output
    assert "tempering" in result.stdout
    assert not (tmp_path / "again.partial").exists()
    again, whole = (np.load(tmp_path / name)["positions"] for name in ("again.npz", "whole.npz"))
    assert np.array_equal(again, whole)
    assert len(mdtraj.load(tmp_path / "again.dcd", top=tmp_path / "again.pdb")) == 1200
