"""OpenMM's two ways of writing the OBC solvent as a generalised Born energy."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import torch

from boltztilt.potentials.nonbonded import GeneralizedBorn
from boltztilt.potentials.openmm_parameters import (
    COULOMB,
    Untranslated,
    parameters,
    plain,
    refuse_cutoff,
)

if TYPE_CHECKING:
    import openmm

OFFSET = 0.009  # nm, by which radii are reduced
PROBE_RADIUS = 0.14  # nm

INTEGRALS = (
    "select(step(r+sr2-or1),0.5*(1/L-1/U+0.25*(r-sr2^2/r)*(1/(U^2)-1/(L^2))+0.5*log(L/U)/r),0);"
    "U=r+sr2;L=max(or1,D);D=abs(r-sr2)"
)
RADII = "1/(1/or-tanh(psi-0.8*psi^2+4.85*psi^3)/radius);psi=I*or;radius=or+offset;offset=0.009"
GAP = re.escape("*(1/soluteDielectric-1/solventDielectric)*")
CONSTANTS = (
    r";solventDielectric=(?P<solvent>[\d.e+-]+);soluteDielectric=(?P<solute>[\d.e+-]+)"
    r";kappa=0;offset=(?P<offset>[\d.e+-]+)"
)
SELF_ENERGY = r"-0\.5\*(?P<coulomb>[\d.]+)" + GAP + re.escape("charge^2/B") + CONSTANTS
PAIR_ENERGY = (
    r"-(?P<coulomb>[\d.]+)"
    + GAP
    + re.escape("charge1*charge2/f;f=sqrt(r^2+B1*B2*exp(-r^2/(4*B1*B2)))")
    + CONSTANTS
)
SURFACE_ENERGY = (
    r"(?P<tension>[\d.]+)" + re.escape("*(radius+0.14)^2*(radius/B)^6;radius=or+offset") + CONSTANTS
)


def translate_gbsa(force: openmm.GBSAOBCForce, kt: float) -> GeneralizedBorn:
    """Returns the solvent of a GBSAOBCForce."""
    refuse_cutoff(force)
    particles = torch.tensor(parameters(force, "Particle"), dtype=torch.float64)
    charges, radii, scales = particles.T[:, :, None]
    gap = 1.0 / force.getSoluteDielectric() - 1.0 / force.getSolventDielectric()
    tension = 4.0 * math.pi * plain(force.getSurfaceAreaEnergy())
    return GeneralizedBorn(
        radii,
        radii - OFFSET,
        scales * (radii - OFFSET),
        COULOMB * gap / kt * charges * charges.T,
        tension / kt * (radii + PROBE_RADIUS).square() * radii.pow(6),
        engulfing=True,
    )


def translate_custom_gb(force: openmm.CustomGBForce, kt: float) -> GeneralizedBorn:
    """Returns the solvent that implicit/obc2.xml writes as a CustomGBForce.

    It is recognised by the very text of its expressions, constants excepted. Unlike a
    GBSAOBCForce it has no extra term for an atom inside another.
    """
    refuse_cutoff(force)
    constants = obc_constants(force)
    particles = torch.tensor(parameters(force, "Particle"), dtype=torch.float64)
    charges, offset_radii, scaled_radii = particles.T[:, :, None]
    radii = offset_radii + constants["offset"]
    gap = 1.0 / constants["solute"] - 1.0 / constants["solvent"]
    return GeneralizedBorn(
        radii,
        offset_radii,
        scaled_radii,
        constants["coulomb"] * gap / kt * charges * charges.T,
        constants["tension"] / kt * (radii + PROBE_RADIUS).square() * radii.pow(6),
        engulfing=False,
    )


def obc_constants(force: openmm.CustomGBForce) -> dict[str, float]:
    """Returns the constants in the energy of an OBC solvent without salt.

    Raises:
        Untranslated: the expressions are those of another model.
    """
    names = [
        force.getPerParticleParameterName(i) for i in range(force.getNumPerParticleParameters())
    ]
    pairs, single = force.ParticlePairNoExclusions, force.SingleParticle
    values = [["I", INTEGRALS, pairs], ["B", RADII, single]]
    terms = [(SELF_ENERGY, single), (SURFACE_ENERGY, single), (PAIR_ENERGY, pairs)]
    energies = expressions(force, "EnergyTerm")
    if len(energies) == 2:
        terms.remove((SURFACE_ENERGY, single))
    matches = [
        re.fullmatch(pattern, text) if kind == wanted else None
        for (pattern, wanted), (text, kind) in zip(terms, energies, strict=False)
    ]
    found = {name for match in matches if match for name in match.groupdict().items()}
    constants = {"tension": 0.0} | {name: float(number) for name, number in found}
    if (
        names != ["charge", "or", "sr"]
        or expressions(force, "ComputedValue") != values
        or len(energies) != len(terms)
        or not all(matches)
        or len(constants) != max(len(found), 5)
        or not math.isclose(constants["offset"], OFFSET)
    ):
        raise Untranslated("its expressions are not those of implicit/obc2.xml without salt")
    return constants


def expressions(force: openmm.CustomGBForce, kind: str) -> list[list]:
    """Returns the expressions of a custom force without spaces."""
    rows = parameters(force, kind)
    return [[v.replace(" ", "") if isinstance(v, str) else v for v in row] for row in rows]
