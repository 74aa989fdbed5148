"""The forces of an OpenMM System as terms that torch evaluates for whole batches."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from boltztilt.potentials.force_terms import (
    HarmonicAngles,
    HarmonicBonds,
    PeriodicTorsions,
    RadialFunction,
    RadialTerm,
    Term,
)
from boltztilt.potentials.nonbonded import CoulombLennardJones
from boltztilt.potentials.openmm_born import translate_custom_gb, translate_gbsa
from boltztilt.potentials.openmm_parameters import (
    COULOMB,
    Untranslated,
    column,
    pair_values,
    parameters,
    refuse_cutoff,
    refuse_periodic,
)
from boltztilt.potentials.pairs import AtomPairs

if TYPE_CHECKING:
    import openmm


class Translation(NamedTuple):
    """The terms of a System, and the names of forces that have none with the reasons."""

    terms: list[Term]
    untranslated: dict[str, str]


def translate(system: openmm.System, kt: float) -> Translation:
    """Returns the terms of a System with energies in units of kt (kJ/mol)."""
    n_atoms = system.getNumParticles()
    terms: list[Term] = []
    functions: list[RadialFunction] = []
    untranslated: dict[str, str] = {}
    for force in system.getForces():
        name = type(force).__name__
        try:
            if name in OF_ALL_PAIRS:
                functions.append(OF_ALL_PAIRS[name](force, kt))
            elif name in BONDED:
                terms += BONDED[name](force, n_atoms, kt)
            elif name not in WITHOUT_ENERGY:
                raise Untranslated("torch has no formula for this kind of force")
        except Untranslated as reason:
            untranslated[name] = str(reason)
    if functions:
        terms.append(RadialTerm(AtomPairs(n_atoms), functions))
    return Translation(terms, untranslated)


def translate_bonds(force: openmm.HarmonicBondForce, n_atoms: int, kt: float) -> list[Term]:
    """Returns the bonds, a term of their own pairs; no term if there are none."""
    refuse_periodic(force)
    if not force.getNumBonds():
        return []
    first, second, lengths, stiffness = zip(*parameters(force, "Bond"), strict=True)
    bonds = HarmonicBonds(column(lengths), column(stiffness) / kt)
    return [RadialTerm(atom_pairs(n_atoms, first, second), [bonds])]


def translate_angles(force: openmm.HarmonicAngleForce, n_atoms: int, kt: float) -> list[Term]:
    """Returns the angles; no term if there are none."""
    refuse_periodic(force)
    if not force.getNumAngles():
        return []
    first, centre, last, angles, stiffness = zip(*parameters(force, "Angle"), strict=True)
    arms = (atom_pairs(n_atoms, first, centre), atom_pairs(n_atoms, last, centre))
    return [HarmonicAngles(arms, column(angles), column(stiffness) / kt)]


def translate_torsions(force: openmm.PeriodicTorsionForce, n_atoms: int, kt: float) -> list[Term]:
    """Returns the torsions, those of the same four atoms summed; no term if there are none."""
    refuse_periodic(force)
    series: dict[tuple[int, ...], list[tuple[int, float, float]]] = defaultdict(list)
    for *atoms, order, phase, strength in parameters(force, "Torsion"):
        series[min(tuple(atoms), tuple(atoms[::-1]))].append((order, phase, strength / kt))
    if not series:
        return []
    n_orders = max(order for parts in series.values() for order, _, _ in parts)
    cosines, sines = torch.zeros(2, n_orders, len(series), dtype=torch.float64)
    for torsion, parts in enumerate(series.values()):
        for order, phase, strength in parts:
            cosines[order - 1, torsion] += strength * math.cos(phase)
            sines[order - 1, torsion] += strength * math.sin(phase)
    constant = sum(strength for parts in series.values() for _, _, strength in parts)
    i, j, k, m = zip(*series, strict=True)
    arms = (atom_pairs(n_atoms, i, j), atom_pairs(n_atoms, j, k), atom_pairs(n_atoms, m, k))
    return [PeriodicTorsions(arms, cosines, sines, constant)]


def translate_nonbonded(force: openmm.NonbondedForce, kt: float) -> CoulombLennardJones:
    """Returns Coulomb and Lennard-Jones energies, the exceptions in place."""
    refuse_cutoff(force)
    if force.getNumParticleParameterOffsets() or force.getNumExceptionParameterOffsets():
        raise Untranslated("it has parameter offsets")
    particles = torch.tensor(parameters(force, "Particle"), dtype=torch.float64)
    charges, sigmas, depths = particles.T
    products = torch.outer(charges, charges)
    sigma = 0.5 * (sigmas[:, None] + sigmas)
    depth = torch.outer(depths, depths).sqrt()
    for i, j, *values in parameters(force, "Exception"):
        for table, value in zip((products, sigma, depth), values, strict=True):
            table[min(i, j), max(i, j)] = value
    sigma[depth == 0.0] = 0.0
    return CoulombLennardJones(
        COULOMB / kt * pair_values(products), pair_values(sigma), 4.0 / kt * pair_values(depth)
    )


def atom_pairs(n_atoms: int, first: tuple[int, ...], second: tuple[int, ...]) -> AtomPairs:
    """Returns the pairs of the given atoms."""
    return AtomPairs(n_atoms, torch.tensor([first, second]))


BONDED: dict[str, Callable[[Any, int, float], list[Term]]] = {
    "HarmonicBondForce": translate_bonds,
    "HarmonicAngleForce": translate_angles,
    "PeriodicTorsionForce": translate_torsions,
}
OF_ALL_PAIRS: dict[str, Callable[[Any, float], RadialFunction]] = {
    "NonbondedForce": translate_nonbonded,
    "GBSAOBCForce": translate_gbsa,
    "CustomGBForce": translate_custom_gb,
}
WITHOUT_ENERGY = ("CMMotionRemover",)
