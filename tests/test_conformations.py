"""Torsions, faults, basins and histograms on geometries whose answers are known."""

import math

import mdtraj
import numpy as np
import pytest
import torch

from boltztilt.analysis.conformations import (
    BASINS,
    backbone,
    backbone_torsions,
    basin_free_energies,
    basin_index,
    basin_populations,
    bin_number,
    bond_angles,
    bond_lengths,
    intact,
    jensen_shannon,
    moment_deviations,
    ramachandran,
    residue_torsions,
    torsions,
    total_variation,
)
from boltztilt.systems.molecule import Molecule

ACETYL_C, N, CA, C, AMIDE_N = 4, 6, 8, 14, 16  # of alanine dipeptide


@pytest.fixture(scope="module")
def molecule(aldp):
    return aldp.molecule


def degrees(*values):
    return torch.tensor(values, dtype=torch.float64).deg2rad()


def turned(positions, molecule, first, second, angle):
    """The atoms behind the bond first-second turned about it, right-handed, by degrees."""
    bonded = molecule.bonded.clone()
    bonded[first, second] = bonded[second, first] = False
    behind = {second}
    while True:
        further = behind | {k for atom in behind for k in bonded[atom].nonzero().flatten().tolist()}
        if further == behind:
            break
        behind = further
    axis = torch.nn.functional.normalize(positions[second] - positions[first], dim=0)
    cross = torch.linalg.cross(torch.eye(3), axis.expand(3, 3))  # rows: e_i × axis
    rotation = torch.matrix_exp(math.radians(angle) * cross)
    moved = positions.clone()
    index = sorted(behind)
    moved[index] = (positions[index] - positions[second]) @ rotation.T + positions[second]
    return moved


def conformation(molecule, phi, psi):
    """The molecule's structure with other phi and psi, in degrees."""
    now = backbone_torsions(molecule.structure[None], molecule)
    moved = turned(molecule.structure, molecule, N, CA, phi - float(now.phi.rad2deg()))
    return turned(moved, molecule, CA, C, psi - float(now.psi.rad2deg()))


def two_centres():
    """FClHC-CBrIH: carbon atoms 0 and 1, each with three different neighbours besides the other."""
    topology = mdtraj.Topology()
    residue = topology.add_residue("MOL", topology.add_chain())
    symbols = ("C", "C", "F", "Cl", "H", "Br", "I", "H")
    atoms = [
        topology.add_atom(f"{symbol}{k}", mdtraj.element.Element.getBySymbol(symbol), residue)
        for k, symbol in enumerate(symbols)
    ]
    for first, second in ((0, 1), (0, 2), (0, 3), (0, 4), (1, 5), (1, 6), (1, 7)):
        topology.add_bond(atoms[first], atoms[second])
    arms = 0.1 * torch.tensor([[-0.5, 0.0, 1.0], [-0.5, 0.9, -0.5], [-0.5, -0.9, -0.5]])
    ends = torch.tensor([[0.0, 0.0, 0.0], [0.15, 0.0, 0.0]])
    other_side = torch.tensor([-1.0, 1.0, 1.0])
    return Molecule(topology, torch.cat([ends, arms, ends[1] + other_side * arms]))


@pytest.mark.parametrize("angle", [0.0, 60.0, 179.0, -90.0, -179.0])
def test_torsion_of_four_points_is_the_angle_they_were_made_with(angle):
    # Seen along the middle bond, a clockwise turn of the far end is positive (IUPAC).
    radians = math.radians(angle)
    far = [0.7 * math.cos(radians), -0.7 * math.sin(radians), -2.0]
    points = torch.tensor([[1.0, 0.0, -0.3], [0.0, 0.0, 0.0], [0.0, 0.0, -1.5], far])
    found = torsions(points[None], torch.tensor([[0, 1, 2, 3]]))
    assert float(found.rad2deg()) == pytest.approx(angle, abs=1e-3)


def test_torsions_and_angles_agree_with_mdtraj(molecule, generator):
    positions = molecule.structure + 0.03 * torch.randn(20, 22, 3, generator=generator)
    trajectory = mdtraj.Trajectory(positions.numpy(), molecule.topology)
    ours = backbone_torsions(positions, molecule)
    np.testing.assert_allclose(ours.phi, mdtraj.compute_phi(trajectory)[1], atol=1e-4)
    np.testing.assert_allclose(ours.psi, mdtraj.compute_psi(trajectory)[1], atol=1e-4)
    quadruples = backbone(molecule).omega
    theirs = mdtraj.compute_dihedrals(trajectory, quadruples.numpy())
    np.testing.assert_allclose(ours.omega, theirs, atol=1e-4)
    around_ca = mdtraj.compute_angles(trajectory, np.array([[N, CA, C]]))
    nearest = (bond_angles(positions, molecule) - torch.as_tensor(around_ca)).abs().amin(dim=1)
    assert float(nearest.max()) < 1e-3


def test_backbone_of_alanine_dipeptide_is_found_with_its_caps(molecule):
    found = backbone(molecule)
    assert found.residues == ("ALA2",)
    assert found.phi.tolist() == [[ACETYL_C, N, CA, C]]
    assert found.psi.tolist() == [[N, CA, C, AMIDE_N]]
    assert found.omega.tolist() == [[1, ACETYL_C, N, CA], [CA, C, AMIDE_N, 18]]
    phi, psi, omega = backbone_torsions(molecule.structure[None], molecule)
    assert float(phi.rad2deg()) == pytest.approx(-74, abs=1)
    assert float(psi.rad2deg()) == pytest.approx(155, abs=1)
    assert float(omega.abs().rad2deg().min()) > 175


@pytest.mark.parametrize(("phi", "psi"), [(-60.0, -45.0), (55.0, 30.0), (160.0, 170.0)])
def test_turning_about_its_bonds_sets_phi_and_psi(aldp, molecule, phi, psi):
    moved = conformation(molecule, phi, psi)
    expected = degrees(phi, psi).float()
    for positions in (moved, -moved):  # mirror images are reflected first
        (angles,) = residue_torsions(positions[None], aldp).values()
        torch.testing.assert_close(angles[0], expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        backbone_torsions(-moved[None], molecule).phi[0, 0], -expected[0], atol=1e-3, rtol=0
    )


def test_molecule_without_peptide_has_no_torsions_but_bonds_and_faults():
    molecule = two_centres()
    assert backbone(molecule).residues == ()
    assert [t.shape[1] for t in backbone_torsions(molecule.structure[None], molecule)] == [0, 0, 0]
    assert bond_lengths(molecule.structure[None], molecule).shape == (1, 7)
    assert bond_angles(molecule.structure[None], molecule).shape == (1, 12)
    assert intact(molecule.structure[None], molecule).intact.all()


def test_intact_structures_may_turn_and_be_mirrored(molecule):
    positions = torch.stack([molecule.structure, conformation(molecule, 55, 30)])
    assert intact(positions, molecule).intact.all()
    mirrored = intact(-positions, molecule)
    assert mirrored.intact.all()
    assert mirrored.mirrored.all()
    told_apart = intact(-positions, molecule, mirror_images=False)
    assert told_apart.other_stereoisomer.all()
    assert not told_apart.mirrored.any()


@pytest.mark.parametrize(("factor", "broken"), [(1.15, False), (1.25, True), (0.75, True)])
def test_bonds_break_at_a_fifth_of_their_length(molecule, factor, broken):
    positions = molecule.structure.clone()
    positions[9] = positions[CA] + factor * (positions[9] - positions[CA])  # HA
    found = intact(positions[None], molecule)
    assert found.broken.tolist() == [broken]
    assert found.intact.tolist() == [not broken]


def test_positions_that_are_not_finite_are_broken(molecule):
    positions = molecule.structure.clone()
    positions[3] = math.nan
    assert intact(positions[None], molecule).broken.all()


@pytest.mark.parametrize("bond", [(ACETYL_C, N), (C, AMIDE_N)])
def test_half_a_turn_about_a_peptide_bond_is_cis(molecule, bond):
    found = intact(turned(molecule.structure, molecule, *bond, 180.0)[None], molecule)
    assert found.cis.all()
    assert not found.broken.any()
    assert not found.intact.any()


def test_one_inverted_centre_of_two_is_another_stereoisomer():
    molecule = two_centres()
    assert len(molecule.stereocentres) == 2
    inverted = molecule.structure[[0, 1, 2, 3, 4, 6, 5, 7]]  # Br and I exchanged: same arm lengths
    found = intact(torch.stack([inverted, -molecule.structure]), molecule)
    assert found.other_stereoisomer.tolist() == [True, False]
    assert found.mirrored.tolist() == [False, True]


def test_fractions_of_faults_follow_the_weights(molecule):
    cis = turned(molecule.structure, molecule, ACETYL_C, N, 180.0)
    found = intact(torch.stack([molecule.structure, cis]), molecule)
    fractions = found.fractions(torch.tensor([3.0, 1.0], dtype=torch.float64))
    assert {name: estimate.value for name, estimate in fractions.items()} == {
        "intact": 0.75,
        "broken": 0.0,
        "other_stereoisomer": 0.0,
        "cis": 0.25,
    }


def test_basins_of_well_known_conformations():
    conformations = {
        "alpha_R": [(-60, -45), (-75, -20), (-150, 40), (170, -60)],
        "beta": [(-140, 150), (-75, 150), (-80, 75), (-150, -170), (175, 170)],
        "alpha_L": [(55, 45), (60, -60), (80, 170)],
    }
    for name, angles in conformations.items():
        found = basin_index(degrees(*angles))
        assert [BASINS[index] for index in found] == [name] * len(angles)
    assert basin_index(torch.tensor([[math.nan, 0.0]])).tolist() == [-1]


def test_basin_populations_follow_the_weights_and_sum_to_one():
    angles = degrees((-60, -45), (-75, 150), (-80, 140), (55, 45))
    weights = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    found = basin_populations(angles, weights)
    assert {name: round(each.value, 9) for name, each in found.items()} == {
        "alpha_R": 0.4,
        "beta": 0.5,
        "alpha_L": 0.1,
    }


def test_basin_free_energies_have_the_error_of_counts():
    counts = {(-60, -45): 30, (-75, 150): 60, (55, 45): 10}
    angles = degrees(*(angle for angle, count in counts.items() for _ in range(count)))
    found = basin_free_energies(angles)["alpha_R - beta"]
    assert found.value == pytest.approx(math.log(60 / 30))
    # of independent draws, var log(n / m) = 1 / n + 1 / m; n / (n - 1) removes the bias
    assert found.error == pytest.approx(math.sqrt((1 / 30 + 1 / 60) * 100 / 99))
    copies, groups = angles.repeat(4, 1), torch.arange(100).repeat(4)
    assert basin_free_energies(copies, groups=groups)["alpha_R - beta"] == pytest.approx(found)
    assert basin_free_energies(copies)["alpha_R - beta"].error < 0.6 * found.error


def test_free_energy_of_a_basin_never_seen_is_infinite_with_unknown_error():
    found = basin_free_energies(degrees((-60, -45), (-75, 150)))["alpha_L - beta"]
    assert found.value == math.inf
    assert math.isnan(found.error)


def test_weighted_free_energy_error_matches_the_spread_of_repeated_samples():
    values, errors = [], []
    probabilities = torch.tensor([0.3, 0.6, 0.1], dtype=torch.float64)
    places = degrees((-60, -45), (-75, 150), (55, 45))
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(probabilities, 400, replacement=True, generator=generator)
        weights = (0.8 * torch.randn(400, generator=generator, dtype=torch.float64)).exp()
        found = basin_free_energies(places[drawn], weights)["alpha_R - beta"]
        values.append(found.value)
        errors.append(found.error)
    values, errors = torch.tensor(values), torch.tensor(errors)
    assert abs(float(values.mean()) - math.log(2)) < 4 * float(values.std()) / math.sqrt(300)
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.15)


def test_histogram_counts_weights_in_bins_of_phi_and_psi():
    angles = degrees((-179, -179), (-179, 179), (1, -91), (180, 180))
    weights = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    found = ramachandran(angles, n_bins=4, weights=weights)
    assert found[0, 0] == pytest.approx(0.4)
    assert found[0, 3] == pytest.approx(0.3)
    assert found[2, 0] == pytest.approx(0.2)
    assert found[3, 3] == pytest.approx(0.1)  # +180 degrees is the end of the last bin
    angles[0] = math.nan
    assert float(ramachandran(angles, 4, weights).sum()) == pytest.approx(0.6)


def test_distances_between_equal_and_disjoint_histograms():
    first = torch.tensor([[0.5, 0.5], [0.0, 0.0]], dtype=torch.float64)
    assert total_variation(first, first) == jensen_shannon(first, first) == 0.0
    assert total_variation(first, first.flip(0)) == pytest.approx(1.0)
    assert jensen_shannon(first, first.flip(0)) == pytest.approx(math.log(2))


def test_distances_between_two_coins_have_their_closed_form():
    p, q = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.5, 0.5]).double()
    divergence = 0.5 * (math.log(1 / 0.75) + 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2))
    assert total_variation(p, q) == pytest.approx(0.5)
    assert jensen_shannon(p, q) == pytest.approx(divergence)


def test_bins_are_whole_degrees_and_grow_with_the_fourth_root():
    assert [bin_number(n) for n in (1, 1000, 10_000, 160_000)] == [12, 20, 36, 72]
    assert all(360 % bin_number(n) == 0 for n in range(1, 200_000, 997))


def test_moment_deviations_of_a_shifted_and_of_a_stretched_variable(generator):
    values = torch.randn(500, 4, generator=generator, dtype=torch.float64)
    shifted = values + torch.tensor([0.0, 0.0, -0.3, 0.1], dtype=torch.float64)
    found = moment_deviations(shifted, values)
    expected = (0.3, math.sqrt(0.1 / 4), 0.0, 0.0)
    assert found == pytest.approx(expected, abs=1e-12)
    spread = values.std(dim=0, correction=0)
    centred = values - values.mean(dim=0)
    found = moment_deviations(3 * centred, centred)
    assert found.sd_max == pytest.approx(2 * float(spread.max()))
    assert found.sd_rms == pytest.approx(2 * float(spread.square().mean().sqrt()))


def test_weights_of_moment_deviations_count_like_repeated_structures(generator):
    values = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    reference = torch.randn(70, 3, generator=generator, dtype=torch.float64)
    repeats = torch.randint(0, 4, (50,), generator=generator)
    weighted = moment_deviations(values, reference, repeats.double())
    assert weighted == pytest.approx(
        moment_deviations(values.repeat_interleave(repeats, dim=0), reference)
    )
