"""Bonds, roles and handedness of alanine dipeptide, counted by hand."""

import math

import mdtraj
import pytest
import torch

from boltztilt.energy import CallablePotential
from boltztilt.geometry import random_rotation
from boltztilt.systems.molecule import Molecule

# atoms in the order of aldp.pdb
METHYLS = ((0, 2, 3), (11, 12, 13), (19, 20, 21))
ALPHA, NEIGHBOURS = 8, (6, 9, 10, 14)


@pytest.fixture(scope="module")
def molecule(aldp):
    return aldp.molecule


def chain(elements: str, bonds, positions=None) -> Molecule:
    """A molecule of single-letter elements."""
    topology = mdtraj.Topology()
    residue = topology.add_residue("MOL", topology.add_chain())
    for symbol in elements:
        topology.add_atom(symbol, mdtraj.element.Element.getBySymbol(symbol), residue)
    for first, second in bonds:
        topology.add_bond(topology.atom(first), topology.atom(second))
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(len(elements), 3, generator=generator)
    return Molecule(topology, random if positions is None else positions)


def test_interchangeable_atoms_are_the_hydrogens_of_three_methyls(aldp):
    roles = aldp.species
    for group in METHYLS:
        assert {roles[atom] for atom in group} == {group[0]}
    methyl_hydrogens = {atom for group in METHYLS for atom in group}
    for atom in range(22):
        if atom not in methyl_hydrogens:
            assert roles.count(roles[atom]) == 1


def test_exchange_within_a_role_leaves_the_energy_and_no_other_does(aldp, generator):
    noise = 0.01 * torch.randn(3, 22, 3, generator=generator, dtype=torch.float64)
    structures = aldp.molecule.structure.double() + noise
    energy = aldp.potential.energy(structures)
    for first, second in ((0, 2), (12, 13), (19, 21), (0, 11), (7, 9), (5, 15)):
        order = list(range(22))
        order[first], order[second] = second, first
        change = (aldp.potential.energy(structures[:, order]) - energy).abs()
        alike = aldp.species[first] == aldp.species[second]
        assert (change < 1e-6).all() if alike else (change > 1).all()


def test_energy_decides_about_candidates(molecule):
    """Hydrogens of the first methyl group: the energy sees the first of them alone."""
    single = CallablePotential(lambda x: 50 * x[:, 0].norm(dim=-1), 22)
    roles = molecule.roles(single)
    assert roles[0] == 0
    assert roles[2] == roles[3] == 2


def test_unconnected_atoms_of_one_element_may_be_exchanged():
    atoms = chain("NNCN", [])
    everywhere = CallablePotential(lambda x: x.square().sum((1, 2)), 4)
    assert atoms.roles(everywhere) == (0, 0, 2, 0)
    first_bond = CallablePotential(lambda x: (x[:, 0] - x[:, 1]).norm(dim=-1), 4)
    assert atoms.roles(first_bond) == (0, 0, 2, 3)


def test_bond_distances_are_those_of_shortest_paths(molecule):
    n = molecule.n_atoms
    expected = torch.full((n, n), n)
    expected[torch.arange(n), torch.arange(n)] = 0
    first, second = molecule.bonds
    expected[first, second] = expected[second, first] = 1
    for middle in range(n):  # Floyd and Warshall
        expected = torch.minimum(expected, expected[:, middle, None] + expected[middle])
    assert expected.max() == 8
    for largest in (1, 2, 4, 9):
        assert torch.equal(molecule.bond_distances(largest), expected.clamp(max=largest))


def test_bonds_of_the_dipeptide_connect_it_without_rings(molecule):
    assert molecule.bonds.shape == (2, 21)
    assert (molecule.bonds[0] < molecule.bonds[1]).all()
    assert len(molecule.detached) == 0
    assert molecule.elements.count(1) == 12


def test_detached_atoms_are_those_out_of_reach():
    assert chain("CCNO", [(0, 1), (2, 3)]).detached.tolist() == [2, 3]
    assert chain("CCNO", [(0, 1), (3, 2), (1, 3)]).detached.tolist() == []


def test_environments_tell_methyls_apart_but_not_their_hydrogens(molecule):
    environments = molecule.environments
    for group in METHYLS:
        assert len({environments[atom] for atom in group}) == 1
    assert len(set(environments)) == 22 - 6


def test_environments_of_symmetric_atoms_are_equal():
    """Butane's carbon skeleton and a ring, whose symmetries are known."""
    butane = chain("CCCC", [(0, 1), (1, 2), (2, 3)]).environments
    assert butane[0] == butane[3] != butane[1] == butane[2]
    assert len(set(chain("CCCCC", [(i, (i + 1) % 5) for i in range(5)]).environments)) == 1


def test_the_alpha_carbon_is_the_only_stereocentre(molecule):
    ((centre, *around),) = molecule.stereocentres.tolist()
    assert centre == ALPHA
    assert set(around) < set(NEIGHBOURS)


def test_the_structure_is_the_natural_hand(molecule):
    """L: seen from the hydrogen, CO, R and N follow each other clockwise (the CORN rule)."""
    hydrogen, carbonyl, rest, nitrogen = (
        molecule.structure[atom] - molecule.structure[ALPHA] for atom in (9, 14, 10, 6)
    )
    turn = torch.linalg.cross(carbonyl, rest) + torch.linalg.cross(rest, nitrogen)
    turn = turn + torch.linalg.cross(nitrogen, carbonyl)
    assert torch.dot(turn, hydrogen) < 0  # clockwise for one who looks from there


def test_mirror_images_are_recognised_however_they_are_turned(molecule, generator):
    structure = molecule.structure.double()
    frames = structure + 0.005 * torch.randn(6, 22, 3, generator=generator, dtype=torch.float64)
    for reflect in (False, True):
        turned = frames @ random_rotation(3, generator, reflect).T + 0.3
        assert (molecule.inverted_centres(turned) == reflect).all()
    exchanged = frames.clone()
    exchanged[:, [9, 10]] = frames[:, [10, 9]]
    assert molecule.inverted_centres(exchanged).all()


def test_unmirrored_structures_are_reflected_where_it_is_needed(aldp, generator):
    noise = 0.005 * torch.randn(5, 22, 3, generator=generator, dtype=torch.float64)
    frames = aldp.molecule.structure.double() + noise
    given = frames.clone()
    given[[1, 4]] *= -1
    unmirrored, mirrored = aldp.molecule.unmirrored(given)
    assert mirrored.tolist() == [False, True, False, False, True]
    assert torch.equal(unmirrored, frames)
    torch.testing.assert_close(aldp.potential.energy(given), aldp.potential.energy(frames))
    again, none = aldp.molecule.unmirrored(unmirrored)
    assert torch.equal(again, unmirrored)
    assert not none.any()


def test_molecule_without_stereocentre_has_no_mirror_images(generator):
    plain = chain("CNO", [(0, 1), (1, 2)])
    positions = torch.randn(4, 3, 3, generator=generator)
    unmirrored, mirrored = plain.unmirrored(positions)
    assert torch.equal(unmirrored, positions)
    assert not mirrored.any()


def test_structure_has_the_shape_of_the_topology():
    with pytest.raises(ValueError, match=r"shape \(2, 3\) .* 3 atoms: expected \(3, 3\)"):
        chain("CNO", [], torch.zeros(2, 3))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_atom_without_a_position_is_named(bad):
    positions = torch.eye(3)
    positions[1, 2] = bad
    with pytest.raises(ValueError, match=r"atom 2 \(MOL0-N\) has no finite position"):
        chain("CNO", [], positions)


def test_atoms_in_one_place_are_named():
    with pytest.raises(ValueError, match=r"atoms 1 \(MOL0-C\) and 3 \(MOL0-O\) overlap"):
        chain("CNO", [], torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0, 0.001]]))
