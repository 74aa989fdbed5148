"""Conformations of molecules: backbone torsions, intact structures, basins, bonds and angles.

Torsions and angles are in radians, lengths in nm. The plane of (phi, psi) is divided into three
basins, which together fill it:

- alpha_L: 0 <= phi < 120 degrees, left-handed helix and C7ax, whatever psi.
- alpha_R: any other phi and -120 <= psi < 50 degrees, right-handed helix.
- beta: the rest, extended structures: C7eq, C5 and polyproline II. It includes phi > 120 degrees,
  which continues phi = -180 degrees.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from boltztilt.sampling.estimate import Estimate, group_sums, weighted_fraction
from boltztilt.systems.molecule import Molecule
from boltztilt.systems.system import System

BOND_TOLERANCE = 0.2
"""Relative change of its length beyond which a bond counts as broken."""

BASINS = ("alpha_R", "beta", "alpha_L")
ALPHA_L_PHI = (math.radians(0), math.radians(120))
ALPHA_R_PSI = (math.radians(-120), math.radians(50))
REFERENCE_BASIN = "beta"

BIN_NUMBERS = (12, 15, 18, 20, 24, 30, 36, 40, 45, 60, 72)  # of whole degrees, 30 down to 5
BINS_PER_ROOT = 3.6  # 36 bins for 10,000 structures


class Backbone(NamedTuple):
    """Atoms of the torsions of a peptide backbone, in the order of the chain.

    Attributes:
        residues: names such as `ALA2` of the residues that have both phi and psi.
        phi: C, N, CA, C of these residues, `(residues, 4)`.
        psi: N, CA, C, N of these residues, `(residues, 4)`.
        omega: the two carbons around each peptide bond C-N, and its atoms, `(peptide_bonds, 4)`.
    """

    residues: tuple[str, ...]
    phi: Int[Tensor, "residues 4"]
    psi: Int[Tensor, "residues 4"]
    omega: Int[Tensor, "peptide_bonds 4"]


class BackboneTorsions(NamedTuple):
    """phi and psi `(batch, residues)`, omega `(batch, peptide_bonds)`, in radians."""

    phi: Float[Tensor, "batch residues"]
    psi: Float[Tensor, "batch residues"]
    omega: Float[Tensor, "batch peptide_bonds"]


class Intactness(NamedTuple):
    """What is wrong with each structure, `(batch,)`.

    Attributes:
        broken: a bond differs by more than 20 % from its length in the molecule's structure.
        other_stereoisomer: a stereocentre is inverted, relative to the molecule's structure.
        cis: a peptide bond has |omega| <= 90 degrees.
        mirrored: the structure was reflected before the comparison.
    """

    broken: Bool[Tensor, "batch"]
    other_stereoisomer: Bool[Tensor, "batch"]
    cis: Bool[Tensor, "batch"]
    mirrored: Bool[Tensor, "batch"]

    @property
    def intact(self) -> Bool[Tensor, "batch"]:
        """Neither broken nor another stereoisomer nor cis."""
        return ~(self.broken | self.other_stereoisomer | self.cis)

    def fractions(
        self,
        weights: Float64[Tensor, "batch"] | None = None,
        groups: Int[Tensor, "batch"] | None = None,
    ) -> dict[str, Estimate]:
        """The fraction of structures that are intact, and of those with each fault."""
        flags = {"intact": self.intact, **self._asdict()}
        return {
            name: weighted_fraction(flag, weights, groups)
            for name, flag in flags.items()
            if name != "mirrored"
        }


class MomentDeviations(NamedTuple):
    """How far means and standard deviations of several variables are off: largest and rms."""

    mean_max: float
    mean_rms: float
    sd_max: float
    sd_rms: float


def backbone(molecule: Molecule) -> Backbone:
    """The backbone torsions of a molecule, found by atom names; none where there is no peptide."""
    import mdtraj

    frame = mdtraj.Trajectory(molecule.structure[None].cpu().numpy(), molecule.topology)
    phi_of = {int(row[2]): row.tolist() for row in mdtraj.compute_phi(frame, periodic=False)[0]}
    psi_of = {int(row[1]): row.tolist() for row in mdtraj.compute_psi(frame, periodic=False)[0]}
    centres = sorted(phi_of.keys() & psi_of.keys())
    return Backbone(
        tuple(_residue_name(molecule, atom) for atom in centres),
        _quadruples([phi_of[atom] for atom in centres]),
        _quadruples([psi_of[atom] for atom in centres]),
        _quadruples(_peptide_bonds(molecule)),
    )


def backbone_torsions(
    positions: Float[Tensor, "batch atoms 3"], molecule: Molecule
) -> BackboneTorsions:
    """phi, psi and omega of the positions as they are, mirror images included, in radians."""
    _, *atoms = backbone(molecule)
    return BackboneTorsions(*(torsions(positions, quadruples) for quadruples in atoms))


def residue_torsions(
    positions: Float[Tensor, "batch atoms 3"], system: System
) -> dict[str, Float[Tensor, "batch 2"]]:
    """(phi, psi) in radians of every residue by its name; empty without a peptide backbone.

    Mirror images are reflected first where the energy does not tell them from the molecule.
    """
    if system.molecule is None:
        return {}
    if system.potential.mirror_symmetric:
        positions, _ = system.molecule.unmirrored(positions)
    found = backbone(system.molecule)
    phi, psi = (torsions(positions, quadruples) for quadruples in (found.phi, found.psi))
    return dict(zip(found.residues, torch.stack([phi, psi], dim=2).unbind(1), strict=True))


def torsions(
    positions: Float[Tensor, "batch atoms 3"], quadruples: Int[Tensor, "torsions 4"]
) -> Float[Tensor, "batch torsions"]:
    """Dihedral angles in (-pi, pi], 0 for cis, positive for a right-handed screw (IUPAC).

    With bond vectors a, b, c: atan2(|b| a·(b × c), (a × b)·(b × c)).

    Reference: A. Blondel & M. Karplus (1996), J. Comput. Chem. 17, 1132.
    """
    first, second, third = positions[:, quadruples].diff(dim=2).unbind(2)
    normal = torch.linalg.cross(second, third)
    sine = second.norm(dim=-1) * (first * normal).sum(-1)
    cosine = (torch.linalg.cross(first, second) * normal).sum(-1)
    return torch.atan2(sine, cosine)


def intact(
    positions: Float[Tensor, "batch atoms 3"], molecule: Molecule, mirror_images: bool = True
) -> Intactness:
    """Which structures have broken bonds, inverted stereocentres or cis peptide bonds.

    Args:
        mirror_images: whether the mirror image of the molecule counts as the molecule, as it does
            for an energy without handedness; structures are then reflected first.
    """
    mirrored = torch.zeros(len(positions), dtype=torch.bool, device=positions.device)
    if mirror_images:
        positions, mirrored = molecule.unmirrored(positions)
    lengths = bond_lengths(positions, molecule)
    usual = bond_lengths(molecule.structure[None].to(positions), molecule)
    omega = backbone_torsions(positions, molecule).omega
    return Intactness(
        broken=~((lengths / usual - 1).abs() <= BOND_TOLERANCE).all(dim=1),
        other_stereoisomer=molecule.inverted_centres(positions).any(dim=1),
        cis=(omega.abs() <= math.pi / 2).any(dim=1),
        mirrored=mirrored,
    )


def bond_lengths(
    positions: Float[Tensor, "batch atoms 3"], molecule: Molecule
) -> Float[Tensor, "batch bonds"]:
    """Lengths of all bonds, in the units of the positions."""
    first, second = molecule.bonds
    return (positions[:, first] - positions[:, second]).norm(dim=-1)


def bond_angles(
    positions: Float[Tensor, "batch atoms 3"], molecule: Molecule
) -> Float[Tensor, "batch angles"]:
    """Angles between all bonds with a common atom, in radians."""
    triples = [
        [first, centre, second]
        for centre, row in enumerate(molecule.bonded)
        for first, second in itertools.combinations(row.nonzero().flatten().tolist(), 2)
    ]
    first, centre, second = torch.tensor(triples, dtype=torch.long).reshape(-1, 3).T
    one, other = (positions[:, end] - positions[:, centre] for end in (first, second))
    return torch.atan2(torch.linalg.cross(one, other).norm(dim=-1), (one * other).sum(-1))


def moment_deviations(
    values: Float[Tensor, "batch variables"],
    reference: Float[Tensor, "reference variables"],
    weights: Float64[Tensor, "batch"] | None = None,
) -> MomentDeviations:
    """Differences of each variable's mean and standard deviation from those of the reference."""
    moments, expected = _moments(values, weights), _moments(reference, None)
    mean, sd = (one - other for one, other in zip(moments, expected, strict=True))
    return MomentDeviations(
        *(float(x) for each in (mean, sd) for x in (_largest(each), _rms(each)))
    )


def bin_number(n: int) -> int:
    """Bins for each angle of a histogram of `n` structures: 36 of 10 degrees for 10,000.

    Grows as n^(1/4), which balances noise and resolution in two dimensions, in whole degrees.

    Reference: D. W. Scott (1979), Biometrika 66, 605, https://doi.org/10.1093/biomet/66.3.605
    """
    wanted = BINS_PER_ROOT * n**0.25
    return max((number for number in BIN_NUMBERS if number <= wanted), default=BIN_NUMBERS[0])


def ramachandran(
    angles: Float[Tensor, "batch 2"],
    n_bins: int = 36,
    weights: Float64[Tensor, "batch"] | None = None,
) -> Float64[Tensor, "phi_bins psi_bins"]:
    """The probability of each bin of the plane of (phi, psi), from -180 to 180 degrees.

    Structures without finite torsions have no bin, and lower the sum of all bins below one.
    """
    weights = torch.ones(len(angles), dtype=torch.float64) if weights is None else weights.double()
    found = torch.isfinite(angles).all(dim=1)
    bins = ((angles[found].double() / (2 * math.pi) + 0.5) * n_bins).long().clamp(0, n_bins - 1)
    flat = bins[:, 0] * n_bins + bins[:, 1]
    counts = torch.bincount(flat, weights=weights[found], minlength=n_bins**2)
    return counts.reshape(n_bins, n_bins) / weights.sum()


def total_variation(first: Float64[Tensor, "..."], second: Float64[Tensor, "..."]) -> float:
    """Half the sum of |p - q| over all bins: 0 for equal histograms, 1 for disjoint ones."""
    return 0.5 * float((first - second).abs().sum())


def jensen_shannon(first: Float64[Tensor, "..."], second: Float64[Tensor, "..."]) -> float:
    """The divergence KL(p | m) / 2 + KL(q | m) / 2 with m = (p + q) / 2, in nats: 0 to log 2.

    Reference: J. Lin (1991), IEEE Trans. Inf. Theory 37, 145, https://doi.org/10.1109/18.61115
    """
    middle = 0.5 * (first + second)
    return 0.5 * sum(float(torch.special.xlogy(p, p / middle).nansum()) for p in (first, second))


def basin_index(angles: Float[Tensor, "batch 2"]) -> Int[Tensor, "batch"]:
    """The number in `BASINS` of the basin of each (phi, psi); -1 where these are not finite."""
    phi, psi = angles.unbind(1)
    left = (phi >= ALPHA_L_PHI[0]) & (phi < ALPHA_L_PHI[1])
    right = ~left & (psi >= ALPHA_R_PSI[0]) & (psi < ALPHA_R_PSI[1])
    index = torch.full(phi.shape, BASINS.index("beta"), device=phi.device)
    index[left], index[right] = BASINS.index("alpha_L"), BASINS.index("alpha_R")
    return torch.where(torch.isfinite(angles).all(dim=1), index, -1)


def basin_populations(
    angles: Float[Tensor, "batch 2"],
    weights: Float64[Tensor, "batch"] | None = None,
    groups: Int[Tensor, "batch"] | None = None,
) -> dict[str, Estimate]:
    """The fraction of structures in each basin; errors are those over groups, if given.

    Structures that depend on each other without being marked by groups, such as those of one
    Markov chain that never left its basin, make the errors too small.
    """
    index = basin_index(angles)
    return {
        name: weighted_fraction(index == number, weights, groups)
        for number, name in enumerate(BASINS)
    }


def basin_free_energies(
    angles: Float[Tensor, "batch 2"],
    weights: Float64[Tensor, "batch"] | None = None,
    groups: Int[Tensor, "batch"] | None = None,
) -> dict[str, Estimate]:
    """Free energies in kT of the other basins relative to beta, -log(p / p_beta).

    The error is that of a ratio of means to first order (delta method), over groups if given;
    NaN where a basin was never seen.
    """
    index = basin_index(angles)
    weights = torch.ones(len(index), dtype=torch.float64) if weights is None else weights
    inside = {
        name: group_sums(weights * (index == number), groups) for number, name in enumerate(BASINS)
    }
    relative_to = inside[REFERENCE_BASIN]
    return {
        f"{name} - {REFERENCE_BASIN}": _minus_log_ratio(inside[name], relative_to)
        for name in BASINS
        if name != REFERENCE_BASIN
    }


def _minus_log_ratio(
    first: Float64[Tensor, "groups"], second: Float64[Tensor, "groups"]
) -> Estimate:
    """-log(sum of first / sum of second), and its error to first order."""
    if not (first.sum() > 0 and second.sum() > 0):
        return Estimate(float(second.sum().log() - first.sum().log()), math.nan)
    changes = first / first.sum() - second / second.sum()
    n = len(changes)
    error = float(changes.square().sum().sqrt()) * math.sqrt(n / (n - 1)) if n > 1 else math.nan
    return Estimate(float(second.sum().log() - first.sum().log()), error)


def _moments(values: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weighted means and standard deviations over the batch; zero weights do not count."""
    if weights is None:
        weights = torch.ones(len(values), dtype=torch.float64)
    values, weights = values[weights > 0].double(), weights[weights > 0] / weights.sum()
    mean = weights @ values
    return mean, (weights @ (values - mean).square()).sqrt()


def _largest(values: Tensor) -> Tensor:
    return values.abs().max() if len(values) else values.new_zeros(())


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt() if len(values) else values.new_zeros(())


def _quadruples(rows: list[list[int]]) -> Int[Tensor, "torsions 4"]:
    return torch.tensor(rows, dtype=torch.long).reshape(-1, 4)


def _residue_name(molecule: Molecule, atom: int) -> str:
    residue = molecule.topology.atom(atom).residue
    return str(residue) if molecule.topology.n_chains == 1 else f"{residue.chain.index}:{residue}"


def _peptide_bonds(molecule: Molecule) -> list[list[int]]:
    """CA, C, N, CA around bonds between residues; caps have another carbon in the place of CA.

    mdtraj's omega leaves out the bonds to caps.
    """
    found = []
    for bond in molecule.bonds.T.tolist():
        carbon, nitrogen = sorted(bond, key=lambda atom: molecule.topology.atom(atom).name)
        atoms = [molecule.topology.atom(atom) for atom in (carbon, nitrogen)]
        if [atom.name for atom in atoms] == ["C", "N"] and atoms[0].residue != atoms[1].residue:
            ends = [_bonded_carbon(molecule, atom) for atom in (carbon, nitrogen)]
            if None not in ends:
                found.append([ends[0], carbon, nitrogen, ends[1]])
    return found


def _bonded_carbon(molecule: Molecule, atom: int) -> int | None:
    """The carbon next to an atom in its own residue, CA before others."""
    topology = molecule.topology
    bonded = [topology.atom(other) for other in molecule.bonded[atom].nonzero().flatten().tolist()]
    carbons = [
        other
        for other in bonded
        if other.element.symbol == "C" and other.residue == topology.atom(atom).residue
    ]
    carbons.sort(key=lambda other: other.name != "CA")
    return carbons[0].index if carbons else None
