"""Collective vectors of alanine dipeptide and the velocity made of them, in float64."""

import math

import pytest
import torch

from boltztilt.geometry import random_rotation
from boltztilt.networks.build import build_network, pairing_of
from boltztilt.networks.collective import MOST_VECTORS, CollectiveField, widest_modes
from boltztilt.systems.system import load_system

EXACT = 1e-9
TIMES = torch.tensor([0.0, 0.4, 0.95], dtype=torch.float64)


def collective_field(system, moved=True):
    """A small field; `moved` off its start, where its velocity is zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = CollectiveField(pairing_of(system), 7)
        for parameter in field.parameters():
            parameter.data += 0.2 * moved * torch.randn(parameter.shape)
    return field.double().requires_grad_(False)


@pytest.fixture
def positions(aldp, generator):
    return aldp.base.sample(3, generator, torch.float64)


def test_divergence_equals_the_trace_of_the_jacobian(aldp, positions, jacobian_trace):
    field = collective_field(aldp)
    velocity, divergence = field.velocity_and_divergence(TIMES, positions)
    expected = jacobian_trace(field, TIMES, positions)
    torch.testing.assert_close(divergence, expected, atol=EXACT, rtol=EXACT)
    assert torch.equal(velocity, field(TIMES, positions))
    assert divergence.abs().min() > 1


@pytest.mark.parametrize("reflect", [False, True], ids=["rotation", "reflection"])
def test_velocity_turns_with_the_molecule(reflect, aldp, positions, generator):
    field, rotation = collective_field(aldp), random_rotation(3, generator, reflect)
    turned = field(TIMES, positions @ rotation.T + 0.3)
    expected = field(TIMES, positions) @ rotation.T
    torch.testing.assert_close(turned, expected, atol=EXACT, rtol=EXACT)


def test_atoms_of_one_role_move_together(aldp, positions):
    velocity = collective_field(aldp)(TIMES, positions)
    assert torch.equal(velocity[:, 2], velocity[:, 0])  # hydrogens of a methyl group
    exchanged = positions.clone()
    exchanged[:, [0, 2]] = positions[:, [2, 0]]
    same = collective_field(aldp)(TIMES, exchanged)
    torch.testing.assert_close(same, velocity, atol=EXACT, rtol=EXACT)


def test_atoms_see_the_whole_molecule(aldp, positions):
    """An atom far along the chain changes the velocity of the first one."""
    field, moved = collective_field(aldp), positions.clone()
    moved[:, 18] += 0.1
    change = (field(TIMES, moved) - field(TIMES, positions))[:, 0]
    assert change.abs().amax(1).min() > 1e-3


def test_vectors_start_independent_and_of_unit_variance(aldp, generator):
    """Over the base the mean of G is the identity: within five standard errors of every entry."""
    field, n = collective_field(aldp, moved=False), 4000
    positions = aldp.base.sample(n, generator, torch.float64)
    products = field.activations(torch.zeros(n, dtype=torch.float64), positions).products
    off = (products.mean(0) - torch.eye(products.shape[1])).abs()
    assert (off < 5 * products.std(0) / n**0.5).all()


def test_fresh_field_is_at_rest(aldp, positions):
    velocity, divergence = collective_field(aldp, moved=False).velocity_and_divergence(
        TIMES, positions
    )
    assert torch.equal(velocity, torch.zeros_like(velocity))
    assert torch.equal(divergence, torch.zeros_like(divergence))


def test_large_molecules_keep_their_widest_modes():
    """Of a chain of 40 different atoms: those that spread most under a Gaussian of bonds."""
    n_atoms = 40
    index = torch.arange(n_atoms, dtype=torch.float64)
    spreads = (index[:, None] - index).abs().sqrt()
    modes = widest_modes(spreads, torch.eye(n_atoms, dtype=torch.float64))
    assert modes.shape == (n_atoms, MOST_VECTORS)
    variances = 1 / modes.square().sum(dim=0)
    assert (variances.diff() < 0).all()  # the widest first
    longest = 1 / (2 - 2 * math.cos(math.pi / n_atoms))  # Rouse, first mode
    assert variances[0].item() == pytest.approx(longest, rel=1e-9)


def test_atoms_that_are_all_alike_have_no_collective_vectors():
    with pytest.raises(ValueError, match="collective_width = 8 needs atoms that differ"):
        build_network({"kind": "local_density", "collective_width": 8}, load_system("lj13"))
