"""Molecules of one's own in TOML files: what works, and one clear line for what does not."""

import dataclasses
import shutil
import sys
from functools import cache
from importlib.resources import files

import numpy as np
import openmm as mm
import pytest
import torch
from openmm import app, unit
from typer.testing import CliRunner

from boltztilt import cli
from boltztilt.potentials.openmm_potential import OpenMMPotential
from boltztilt.systems.openmm_molecules import build_system, read_pdb
from boltztilt.systems.system import System, load_system
from boltztilt.tilt.annealing import anneal

DIPEPTIDE = files("boltztilt.systems") / "aldp.pdb"
FORCE_FIELD = 'force_field = ["amber99sbildn.xml"]'
AT_300_K = "temperature = 300.0"


def boltztilt(*words):
    """The result of one command run inside this process."""
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def written(folder, change=None, name="mine.pdb"):
    """A PDB file with the lines of alanine dipeptide, each changed; None leaves a line out."""
    lines = [change(line) if change else line for line in DIPEPTIDE.read_text().splitlines()]
    path = folder / name
    path.write_text("\n".join(line for line in lines if line is not None) + "\n")
    return path


def table(folder, *lines):
    """A TOML file with these lines in its [molecule] table."""
    path = folder / "mine.toml"
    path.write_text("\n".join(["[molecule]", *lines, AT_300_K, ""]))
    return path


@cache
def serialized(**options) -> str:
    system = app.ForceField("amber99sbildn.xml").createSystem(
        app.PDBFile(str(DIPEPTIDE)).topology, **options
    )
    return mm.XmlSerializer.serialize(system)


def capped(residue):
    """ACE-X-NME as a modeller completes it from the backbone of alanine dipeptide."""
    template = app.PDBFile(str(DIPEPTIDE))
    modeller = app.Modeller(template.topology, template.positions)
    (middle,) = (each for each in modeller.topology.residues() if each.name == "ALA")
    by_name = {atom.name: atom for atom in middle.atoms()}
    unwanted = [by_name[name] for name in ("HA", "HB2", "HB3")]
    if residue == "GLY":
        unwanted += [by_name["CB"], by_name["HB1"]]
    else:
        by_name["HB1"].name, by_name["HB1"].element = "OG", app.element.oxygen
        positions = modeller.positions.value_in_unit(unit.nanometer)
        arm = positions[by_name["HB1"].index] - positions[by_name["CB"].index]
        positions[by_name["HB1"].index] = positions[by_name["CB"].index] + 1.3 * arm
        modeller.positions = positions * unit.nanometer
    middle.name = residue
    modeller.delete(unwanted)
    modeller.addHydrogens(app.ForceField("amber99sbildn.xml"))
    return modeller


@pytest.mark.parametrize(("residue", "n_atoms", "n_centres"), [("GLY", 19, 0), ("SER", 23, 1)])
def test_capped_residue_of_ones_own_loads_and_anneals(residue, n_atoms, n_centres, tmp_path):
    made = capped(residue)
    with open(tmp_path / "mine.pdb", "w") as file:
        app.PDBFile.writeFile(made.topology, made.positions, file)
    path = table(tmp_path, 'pdb = "mine.pdb"', FORCE_FIELD)
    system = load_system(path)
    assert (system.name, system.n_atoms, system.base_kind) == ("mine", n_atoms, "bonds")
    assert system.convention == "amber99sbildn.xml, 300 K, kT, nm"
    assert len(system.molecule.stereocentres) == n_centres
    assert system.one_handed == (n_centres > 0)
    ensemble = anneal(path, 8, n_per_group=4, cess=0.3, n_steps=1, n_leapfrog=3)
    reference = build_system(read_pdb(tmp_path / "mine.pdb"), ["amber99sbildn.xml"])
    expected = OpenMMPotential(reference, 300.0).energy(ensemble.positions.double())
    torch.testing.assert_close(ensemble.energies, expected, rtol=1e-5, atol=1e-2)
    assert not system.molecule.inverted_centres(ensemble.positions).any()


def test_pdb_with_force_field_is_the_serialized_system_and_openmms_own_objects(tmp_path):
    """Three ways to the same molecule, and the energies of OpenMM."""
    written(tmp_path)
    (tmp_path / "mine.xml").write_text(serialized())
    pdb = app.PDBFile(str(DIPEPTIDE))
    built = build_system(pdb, ["amber99sbildn.xml"])
    systems = [
        load_system(table(tmp_path, 'pdb = "mine.pdb"', FORCE_FIELD)),
        load_system(table(tmp_path, 'pdb = "mine.pdb"', 'system_xml = "mine.xml"')),
        System.from_openmm(pdb.topology, built, 300.0, pdb.positions),
        load_system("aldp-vacuum"),
    ]
    noise = 0.01 * torch.randn(5, 22, 3, generator=torch.Generator().manual_seed(1))
    frames = (systems[0].molecule.structure + noise).double()
    expected = OpenMMPotential(built, 300.0).energy(frames)
    for system in systems:
        torch.testing.assert_close(system.potential.energy(frames), expected, rtol=0, atol=1e-6)
        assert system.species == systems[0].species
        assert torch.equal(system.molecule.bonds, systems[0].molecule.bonds)


def test_force_field_file_beside_the_toml_file_is_found(tmp_path):
    written(tmp_path)
    shipped = app.__path__[0] + "/data/amber99sbildn.xml"
    shutil.copyfile(shipped, tmp_path / "own.xml")
    system = load_system(table(tmp_path, 'pdb = "mine.pdb"', 'force_field = ["own.xml"]'))
    assert system.files == (tmp_path / "mine.pdb", tmp_path / "own.xml")
    frame = system.molecule.structure[None].double()
    expected = load_system("aldp-vacuum").potential.energy(frame)
    torch.testing.assert_close(system.potential.energy(frame), expected)
    (tmp_path / "ff").mkdir()
    (tmp_path / "own.xml").rename(tmp_path / "ff" / "own.xml")
    system = load_system(table(tmp_path, 'pdb = "mine.pdb"', 'force_field = ["ff/own.xml"]'))
    assert system.files == (tmp_path / "mine.pdb", tmp_path / "ff" / "own.xml")
    torch.testing.assert_close(system.potential.energy(frame), expected)


def no_hydrogens(line):
    return None if line.endswith(" H") else line


def assert_refused(path, *expected):
    """One line on stderr with these words, from info and from train, and no run folder."""
    for words in (["info", path], ["train", path, "-o", path.parent / "run", "--quiet"]):
        result = boltztilt(*words)
        assert result.exit_code == 2, result.output
        (line,) = result.stderr.strip().splitlines()
        assert line.startswith("boltztilt: error: ")
        for word in expected:
            assert word in line
    assert not (path.parent / "run").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (no_hydrogens, ("residue ACE 1", "missing 3 H atoms", "addHydrogens")),
        (lambda line: None if "HB3" in line else line, ("residue ALA 2", "missing 1 H atom")),
        (lambda line: line.replace("ALA", "XYZ"), ("atom N of residue XYZ 2", "CONECT")),
        (lambda line: line.replace(" CB ", " CQ "), ("atom CQ of residue ALA 2", "CONECT")),
        (lambda line: line.replace("   0.406", "     nan"), ("atom 9 (ALA2-CA)", "position")),
        (
            lambda line: line.replace("2.094  -1.893  -2.494", "2.534  -2.022  -1.506"),
            ("atoms 2 (ACE1-CH3) and 3", "overlap"),
        ),
        (lambda line: None if "ATOM" in line else line, ("mine.pdb", "ATOM or HETATM")),
    ],
    ids=["hydrogens", "hydrogen", "residue", "atom", "nan", "overlap", "empty"],
)
def test_pdb_file_that_is_not_complete_is_refused(change, expected, tmp_path):
    written(tmp_path, change)
    assert_refused(table(tmp_path, 'pdb = "mine.pdb"', FORCE_FIELD), *expected)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('force_field = ["amber99sbildnn.xml"]', ("amber99sbildnn.xml", "amber14-all.xml")),
        ('force_field = ["tip3p.xml"]', ("tip3p.xml cannot describe residue ACE 1", "C atoms")),
        ('force_field = ["amber99_obc.xml"]', ("no residue templates",)),
        ('force_field = "amber99sbildn.xml"', ("expected a list",)),
        ("force_field = []", ("expected a list",)),
        ('forcefield = ["amber99sbildn.xml"]', ("'forcefield'", "Did you mean 'force_field'?")),
        ('colour = "red"', ("'colour'", "Known: pdb, force_field")),
        ("", ("either force_field", "or system_xml")),
        ('system_xml = "absent.xml"', ("absent.xml", "no such file")),
        ('system_xml = "constrained.xml"', ("12 constraints", "constraints=None")),
        ('system_xml = "small.xml"', ("22 atoms", "System 2")),
        ('system_xml = "broken.xml"', ("broken.xml", "serialized OpenMM System")),
        ('system_xml = "integrator.xml"', ("holds a VerletIntegrator",)),
    ],
)
def test_energy_that_is_not_described_is_refused(line, expected, tmp_path):
    written(tmp_path)
    (tmp_path / "constrained.xml").write_text(serialized(constraints=app.HBonds))
    small = mm.System()
    small.addParticle(1.0)
    small.addParticle(1.0)
    (tmp_path / "small.xml").write_text(mm.XmlSerializer.serialize(small))
    (tmp_path / "broken.xml").write_text("<System")
    integrator = mm.XmlSerializer.serialize(mm.VerletIntegrator(0.001))
    (tmp_path / "integrator.xml").write_text(integrator)
    assert_refused(table(tmp_path, 'pdb = "mine.pdb"', line), *expected)


@pytest.mark.parametrize("value", ["0.0", "-300.0", "nan", "inf", '"300 K"', "true"])
def test_temperature_must_be_a_positive_number(value, tmp_path):
    written(tmp_path)
    path = table(tmp_path, 'pdb = "mine.pdb"', FORCE_FIELD)
    path.write_text(path.read_text().replace(AT_300_K, f"temperature = {value}"))
    assert_refused(path, "mine.toml", "temperature")


@pytest.mark.parametrize(("value", "word"), [('"absent.pdb"', "absent.pdb"), ("3", "pdb = 3")])
def test_missing_pdb_file_is_named(value, word, tmp_path):
    assert_refused(table(tmp_path, f"pdb = {value}", FORCE_FIELD), word)


def test_pdb_file_without_bonds_needs_another_base(tmp_path):
    written(tmp_path, lambda line: line.replace("ACE", "LIG").replace("ALA", "LIG"))
    (tmp_path / "mine.xml").write_text(serialized())
    lines = ['pdb = "mine.pdb"', 'system_xml = "mine.xml"']
    assert_refused(table(tmp_path, *lines), "atom 2 of 22 (LIG1-CH3)", "CONECT", "isotropic")
    path = table(tmp_path, *lines)
    path.write_text('base_kind = "isotropic"\n' + path.read_text())
    assert load_system(path).base.std == 0.1


def test_missing_openmm_is_named(tmp_path, monkeypatch):
    written(tmp_path)
    monkeypatch.setitem(sys.modules, "openmm", None)
    assert_refused(table(tmp_path, 'pdb = "mine.pdb"', FORCE_FIELD), "pip install openmm")


def test_structure_may_be_numbers_in_nm_or_a_quantity():
    pdb = app.PDBFile(str(DIPEPTIDE))
    system = build_system(pdb, ["amber99sbildn.xml"])
    numbers = np.array(pdb.positions.value_in_unit(unit.nanometer))
    first = System.from_openmm(pdb.topology, system, 300.0, numbers)
    second = System.from_openmm(pdb.topology, system, 300.0, pdb.positions.in_units_of(unit.meter))
    torch.testing.assert_close(first.molecule.structure, second.molecule.structure)


def test_temperature_may_be_a_number_of_kelvin_or_a_quantity(generator):
    pdb = app.PDBFile(str(DIPEPTIDE))
    arguments = (pdb.topology, build_system(pdb, ["amber99sbildn.xml"]))
    first = System.from_openmm(*arguments, 250, pdb.positions)
    second = System.from_openmm(*arguments, 250 * unit.kelvin, pdb.positions)
    frame = first.molecule.structure[None].double()
    assert torch.equal(first.potential.energy(frame), second.potential.energy(frame))
    assert first.convention == second.convention
    assert first.convention.startswith("OpenMM (HarmonicBondForce, ")
    assert first.convention.endswith("), 250 K, kT, nm")
    with pytest.raises(TypeError, match="temperature = '250 K': expected a number of kelvin"):
        System.from_openmm(*arguments, "250 K", pdb.positions)


def test_bonds_do_not_hold_a_molecule_in_an_external_field():
    pdb = app.PDBFile(str(files("boltztilt.systems") / "aldp.pdb"))
    system = build_system(pdb, ["amber99sbildn.xml"])
    force = mm.CustomExternalForce("500*x^2")
    force.addParticle(0)
    system.addForce(force)
    given = (pdb.topology, system, 300.0, pdb.positions)
    with pytest.warns(UserWarning, match="CustomExternalForce"):
        free = System.from_openmm(*given, base_kind="isotropic", base_std=1.0)
    assert not free.base.centered
    with pytest.raises(ValueError, match=r"base_kind = 'bonds' .* external force"):
        dataclasses.replace(free, base_kind="bonds")


def test_any_force_that_sees_absolute_positions_is_found():
    pdb = app.PDBFile(str(files("boltztilt.systems") / "aldp.pdb"))
    for expression, centered in (("500*(x1^2+y1^2)", False), ("500*distance(p1, p2)^2", True)):
        system = build_system(pdb, ["amber99sbildn.xml"])
        force = mm.CustomCompoundBondForce(2, expression)
        force.addBond([0, 1])
        system.addForce(force)
        given = (pdb.topology, system, 300.0, pdb.positions)
        with pytest.warns(UserWarning, match="CustomCompoundBondForce"):
            made = System.from_openmm(*given, base_kind="isotropic", base_std=1.0)
        assert made.potential.centered == centered
