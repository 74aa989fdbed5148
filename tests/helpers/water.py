"""A flexible water molecule, described by an OpenMM System."""

import openmm as mm
from openmm import app

from boltztilt.systems.system import System


def water(stretch=1.0):
    """A flexible water molecule at 300 K; `stretch` scales the bond length in the energy."""
    topology, system = app.Topology(), mm.System()
    residue = topology.addResidue("HOH", topology.addChain())
    atoms = [
        topology.addAtom(name, app.Element.getBySymbol(name[0]), residue)
        for name in ("O", "H1", "H2")
    ]
    for mass in (16.0, 1.0, 1.0):
        system.addParticle(mass)
    bonds, angles = mm.HarmonicBondForce(), mm.HarmonicAngleForce()
    for hydrogen in (1, 2):
        topology.addBond(atoms[0], atoms[hydrogen])
        bonds.addBond(0, hydrogen, 0.1 * stretch, 4e5)
    angles.addAngle(1, 0, 2, 1.824, 800.0)
    system.addForce(bonds)
    system.addForce(angles)
    positions = [[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [-0.025, 0.097, 0.0]]
    return System.from_openmm(topology, system, 300.0, positions, name="water")
