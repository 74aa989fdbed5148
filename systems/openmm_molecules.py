"""Molecules from OpenMM: a PDB file with force-field files, a serialized System, or objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from boltztilt.energy import Potential
from boltztilt.potentials.molecular import molecular_potential
from boltztilt.potentials.openmm_frames import import_openmm
from boltztilt.systems.molecule import Molecule

if TYPE_CHECKING:
    import openmm
    import openmm.app

SETTINGS = ("pdb", "force_field", "system_xml", "temperature")


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
    return MolecularSystem(molecule, molecular_potential(system, temperature))


def molecule_from_table(table: Mapping[str, Any], folder: Path) -> MolecularSystem:
    """The molecule of a [molecule] table, whose files lie in `folder` or come with OpenMM.

    Raises:
        ValueError: unknown or missing settings, or atoms that the force field does not know.
        FileNotFoundError: a file that is neither in the folder nor, for force fields, in OpenMM.
    """
    unknown = sorted(set(table) - set(SETTINGS))
    if unknown:
        raise ValueError(f"[molecule] unknown setting {unknown[0]!r}; known: {', '.join(SETTINGS)}")
    if "pdb" not in table or "temperature" not in table:
        raise ValueError("[molecule] needs pdb (a file) and temperature (in kelvin)")
    if ("force_field" in table) == ("system_xml" in table):
        raise ValueError(
            "[molecule] needs either force_field (a list of OpenMM's XML files) or system_xml (a "
            "serialized OpenMM System)"
        )
    pdb, path = read_pdb(folder / table["pdb"])
    files = [path]
    if "system_xml" in table:
        files.append(folder / table["system_xml"])
        system = read_system(files[-1])
    else:
        names = [str(name) for name in table["force_field"]]
        local = [folder / name for name in names if (folder / name).is_file()]
        files += local
        system = build_system(pdb, [next((str(p) for p in local if p.name == n), n) for n in names])
    made = molecule_from_openmm(pdb.topology, system, table["temperature"], pdb.positions)
    return made._replace(files=tuple(files))


def read_pdb(path: Path) -> tuple[openmm.app.PDBFile, Path]:
    """The contents of a PDB file, and its path."""
    import_openmm()
    from openmm.app import PDBFile

    if not path.is_file():
        raise FileNotFoundError(f"[molecule] no such PDB file: {path}")
    try:
        return PDBFile(str(path)), path
    except Exception as error:
        raise ValueError(f"{path} is not a PDB file that OpenMM can read: {error}") from error


def read_system(path: Path) -> openmm.System:
    """A System from the XML file that `openmm.XmlSerializer` wrote."""
    mm = import_openmm()
    if not path.is_file():
        raise FileNotFoundError(f"[molecule] no such file of a serialized System: {path}")
    try:
        return mm.XmlSerializer.deserialize(path.read_text(encoding="utf-8"))
    except Exception as error:
        raise ValueError(f"{path} does not hold a serialized OpenMM System: {error}") from error


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
        raise ValueError(f"force_field = {list(force_field)}: OpenMM says: {error}") from error
    try:
        return forces.createSystem(
            pdb.topology, nonbondedMethod=NoCutoff, constraints=None, rigidWater=False
        )
    except Exception as error:
        raise ValueError(
            f"{', '.join(force_field)} cannot describe the molecule: {error} Add missing hydrogens "
            "and name atoms and residues as the force field does (PDBFixer or "
            "openmm.app.Modeller.addHydrogens help), or add a force-field file that knows them"
        ) from error
