"""Molecules from OpenMM: a PDB file with force-field files, a serialized System, or objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from boltztilt.energy import Potential
from boltztilt.geometry import random_rotation
from boltztilt.potentials.molecular import molecular_potential
from boltztilt.potentials.openmm_frames import import_openmm
from boltztilt.potentials.openmm_potential import SYMMETRY_TOLERANCE, OpenMMPotential
from boltztilt.suggestions import check_settings
from boltztilt.systems.molecule import Molecule

if TYPE_CHECKING:
    import openmm
    import openmm.app

SETTINGS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "pdb": (str, "the name of a PDB file"),
    "force_field": (list, "a list of OpenMM's XML files"),
    "system_xml": (str, "the name of a file with a serialized OpenMM System"),
    "temperature": ((int, float), "a number of kelvin"),
}


class MolecularSystem(NamedTuple):
    """A molecule with its energy, and the files that describe it."""

    molecule: Molecule
    potential: Potential
    files: tuple[Path, ...] = ()


def molecule_from_openmm(
    topology: openmm.app.Topology,
    system: openmm.System,
    temperature: float,
    positions: Any,
) -> MolecularSystem:
    """A molecule from OpenMM's own objects; positions are a Quantity, or numbers in nm."""
    import mdtraj
    from openmm import unit

    if topology.getNumAtoms() != system.getNumParticles():
        raise ValueError(
            f"the topology has {topology.getNumAtoms()} atoms but the OpenMM System "
            f"{system.getNumParticles()}: they must describe the same atoms in the same order"
        )
    if unit.is_quantity(positions):
        positions = positions.value_in_unit(unit.nanometer)
    structure = torch.as_tensor(np.asarray(positions, dtype=np.float64)).float()
    molecule = Molecule(mdtraj.Topology.from_openmm(topology), structure)
    potential = molecular_potential(system, temperature)
    if isinstance(potential, OpenMMPotential) and _sees_absolute_positions(potential, structure):
        potential.centered = False
    return MolecularSystem(molecule, potential)


def _sees_absolute_positions(potential: Potential, structure: torch.Tensor) -> bool:
    """Whether the energy of a structure changes, in kT, as it is moved and turned."""
    rotation = random_rotation(3, torch.Generator().manual_seed(0))
    here = structure.double()
    energy, moved = potential.energy(torch.stack([here, (here + 0.1) @ rotation.T]))
    return bool(torch.isfinite(energy)) and not bool((moved - energy).abs() <= SYMMETRY_TOLERANCE)


def in_kelvin(temperature: Any) -> float:
    """A temperature in kelvin, given as a Quantity of OpenMM or as a number."""
    from openmm import unit

    if unit.is_quantity(temperature):
        return float(temperature.value_in_unit(unit.kelvin))
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise TypeError(
            f"temperature = {temperature!r}: expected a number of kelvin, or a Quantity such as "
            "300 * openmm.unit.kelvin"
        )
    return float(temperature)


def names_of_forces(system: openmm.System) -> str:
    """The forces of an OpenMM System by name, without those that only remove its motion."""
    names = [force.getName() for force in system.getForces()]
    return ", ".join(name for name in names if name != "CMMotionRemover") or "no force"


def molecule_from_table(table: Mapping[str, Any], folder: Path) -> MolecularSystem:
    """The molecule of a [molecule] table, whose files lie in `folder` or come with OpenMM.

    Raises:
        ValueError: unknown or missing settings, or atoms that the force field does not know.
        FileNotFoundError: a file that is neither in the folder nor, for force fields, in OpenMM.
    """
    _check_table(table)
    files = [folder / table["pdb"]]
    pdb = read_pdb(files[0])
    if "system_xml" in table:
        files.append(folder / table["system_xml"])
        system = read_system(files[-1])
    else:
        names = [str(name) for name in table["force_field"]]
        local = {name: folder / name for name in names if (folder / name).is_file()}
        files += local.values()
        system = build_system(pdb, [str(local.get(name, name)) for name in names])
    made = molecule_from_openmm(pdb.topology, system, table["temperature"], pdb.positions)
    return made._replace(files=tuple(files))


def _check_table(table: Mapping[str, Any]) -> None:
    """Raises ValueError unless a [molecule] table has the settings it needs and no others."""
    check_settings(table, SETTINGS, "[molecule] ")
    if table.get("force_field") == []:
        raise ValueError(f"[molecule] force_field = []: expected {SETTINGS['force_field'][1]}")
    if "pdb" not in table or "temperature" not in table:
        raise ValueError("[molecule] needs pdb (a file) and temperature (in kelvin)")
    if ("force_field" in table) == ("system_xml" in table):
        raise ValueError(
            "[molecule] needs either force_field (a list of OpenMM's XML files) or system_xml (a "
            "serialized OpenMM System)"
        )


def read_pdb(path: Path) -> openmm.app.PDBFile:
    """The contents of a PDB file."""
    import_openmm()
    from openmm.app import PDBFile

    if not path.is_file():
        raise FileNotFoundError(f"[molecule] no such PDB file: {path}")
    try:
        return PDBFile(str(path))
    except Exception as error:
        raise ValueError(
            f"{path} is not a PDB file that OpenMM can read ({type(error).__name__}: {error}); it "
            "has to hold ATOM or HETATM records"
        ) from error


def read_system(path: Path) -> openmm.System:
    """A System from the XML file that `openmm.XmlSerializer` wrote."""
    mm = import_openmm()
    if not path.is_file():
        raise FileNotFoundError(f"[molecule] no such file of a serialized System: {path}")
    try:
        system = mm.XmlSerializer.deserialize(path.read_text(encoding="utf-8"))
    except Exception as error:
        raise ValueError(f"{path} does not hold a serialized OpenMM System: {error}") from error
    if not isinstance(system, mm.System):
        raise ValueError(f"{path} holds a {type(system).__name__}, not a serialized OpenMM System")
    return system


def build_system(pdb: openmm.app.PDBFile, force_field: Sequence[str]) -> openmm.System:
    """The System of a PDB file: all pairs, no constraints.

    Raises:
        ValueError: a residue that the force field does not know, or a file it cannot read.
    """
    import_openmm()
    from openmm.app import ForceField, NoCutoff

    try:
        forces = ForceField(*force_field)
    except Exception as error:
        raise ValueError(
            f"force_field = {list(force_field)}: {error}; give files beside the TOML file, or some "
            "that come with OpenMM, such as amber14-all.xml"
        ) from error
    check_atoms_have_bonds(pdb.topology)
    try:
        return forces.createSystem(
            pdb.topology, nonbondedMethod=NoCutoff, constraints=None, rigidWater=False
        )
    except Exception as error:
        residues = forces.getUnmatchedResidues(pdb.topology)
        name = f"residue {residues[0].name} {residues[0].id}" if residues else "the molecule"
        reason = str(error).split("For more information")[0].strip()
        raise ValueError(
            f"{', '.join(force_field)} cannot describe {name}: {reason} Add missing hydrogens and "
            "name atoms and residues as the force field does (PDBFixer or "
            "openmm.app.Modeller.addHydrogens help), or add a force-field file that knows them"
        ) from error


def check_atoms_have_bonds(topology: openmm.app.Topology) -> None:
    """Raises ValueError for the first atom without bonds that is not a residue on its own."""
    bonded = {atom.index for bond in topology.bonds() for atom in bond}
    for residue in topology.residues():
        atoms = list(residue.atoms())
        alone = [atom for atom in atoms if atom.index not in bonded]
        if alone and len(atoms) > 1:
            raise ValueError(
                f"atom {alone[0].name} of residue {residue.name} {residue.id} has no bonds: a PDB "
                "file needs CONECT records for atoms and residues other than the standard ones "
                "(check the names; openmm.app.Modeller and PDBFixer write standard names)"
            )
