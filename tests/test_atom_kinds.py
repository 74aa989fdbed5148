"""The local-density field for distinguishable atoms: alanine dipeptide in float64."""

import pytest
import torch

from boltztilt.geometry import random_rotation
from boltztilt.networks.build import build_network
from boltztilt.networks.pair_layout import pair_layout
from boltztilt.sampling.flow import resting_rate

EXACT = 1e-9
TIMES = torch.tensor([0.1, 0.6, 0.97], dtype=torch.float64)
NETWORK = {"n_hidden": 8, "n_channels": 3, "n_radial": 8, "core": 0.15, "spread": 0.15}
NETWORK |= {"reach": 1.6, "noise_scale": 0.02, "collective_width": 6}


def field_of(system, moved=True, **settings):
    """A small field; `moved` off its start, where it has no learned part."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = build_network({**NETWORK, **settings}, system)
        for parameter in field.parameters():
            parameter.data += 0.1 * moved * torch.randn(parameter.shape)
    return field.double().requires_grad_(False)


def path(system, generator):
    """Positions at each time on straight ways from the base to the structure."""
    noise = system.base.sample(len(TIMES), generator, torch.float64)
    return torch.lerp(noise, system.molecule.structure.double(), TIMES[:, None, None])


@pytest.mark.parametrize("cutoff", [None, 0.5, 9.0])
def test_divergence_equals_the_trace_of_the_jacobian(cutoff, aldp, jacobian_trace, generator):
    field, positions = field_of(aldp, cutoff=cutoff), path(aldp, generator)
    velocity, divergence = field.velocity_and_divergence(TIMES, positions)
    expected = jacobian_trace(field, TIMES, positions)
    torch.testing.assert_close(divergence, expected, atol=EXACT, rtol=EXACT)
    assert torch.equal(velocity, field(TIMES, positions))
    skip = resting_rate(TIMES)
    assert (divergence - 63 * skip).abs().min() > 1  # the learned part counts


def test_cutoff_beyond_the_molecule_changes_nothing(aldp, generator):
    positions = path(aldp, generator)
    every = field_of(aldp).velocity_and_divergence(TIMES, positions)
    near = field_of(aldp, cutoff=9.0).velocity_and_divergence(TIMES, positions)
    torch.testing.assert_close(near, every, atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize("cutoff", [None, 0.5])
@pytest.mark.parametrize("reflect", [False, True], ids=["rotation", "reflection"])
def test_velocity_turns_with_the_molecule(reflect, cutoff, aldp, generator):
    field, positions = field_of(aldp, cutoff=cutoff), path(aldp, generator)
    rotation = random_rotation(3, generator, reflect)
    turned, divergence = field.velocity_and_divergence(TIMES, positions @ rotation.T + 0.4)
    expected, same = field.velocity_and_divergence(TIMES, positions)
    torch.testing.assert_close(turned, expected @ rotation.T, atol=EXACT, rtol=EXACT)
    torch.testing.assert_close(divergence, same, atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize("cutoff", [None, 0.5])
def test_velocity_permutes_with_interchangeable_atoms_and_no_others(cutoff, aldp, generator):
    field, positions = field_of(aldp, cutoff=cutoff), path(aldp, generator)
    velocity, divergence = field.velocity_and_divergence(TIMES, positions)
    order = list(range(22))
    order[0], order[2], order[3] = 2, 3, 0  # hydrogens of one methyl group
    order[11], order[13] = 13, 11
    permuted, same = field.velocity_and_divergence(TIMES, positions[:, order])
    torch.testing.assert_close(permuted, velocity[:, order], atol=EXACT, rtol=EXACT)
    torch.testing.assert_close(same, divergence, atol=EXACT, rtol=EXACT)
    for first, second in ((0, 11), (7, 9), (5, 15)):
        order = list(range(22))
        order[first], order[second] = second, first
        change = field(TIMES, positions[:, order]) - velocity[:, order]
        assert change.abs().amax((1, 2)).min() > 1e-4


@pytest.mark.parametrize("cutoff", [None, 0.5])
def test_fresh_field_is_the_exact_one_between_equal_gaussians(cutoff, aldp, generator):
    """At a = 0 start and end have the law of the base, whatever its covariance."""
    field = field_of(aldp, moved=False, cutoff=cutoff)
    positions = aldp.base.sample(3, generator, torch.float64)
    velocity, divergence = field.velocity_and_divergence(TIMES, positions)
    rate = (2 * TIMES - 1) / (TIMES**2 + (1 - TIMES) ** 2)
    torch.testing.assert_close(velocity, rate[:, None, None] * positions)
    torch.testing.assert_close(divergence, 63 * rate)


def test_rest_lengths_and_widths_start_from_the_structure_and_the_base(aldp):
    kinds = field_of(aldp, moved=False).kinds
    (pair,) = kinds.table[4, 5][None]  # C=O of the first cap, a kind of its own
    structure = aldp.molecule.structure.double()
    expected = (structure[4] - structure[5]).norm()
    torch.testing.assert_close(kinds.rest_length[pair], expected, atol=1e-6, rtol=0)
    assert kinds.spread[pair].item() == pytest.approx(0.1)
    assert kinds.log_width[pair].exp().item() == pytest.approx(0.03 * 0.1)


def test_pairs_share_a_kind_where_both_roles_agree(aldp):
    table = field_of(aldp, moved=False).kinds.table
    assert torch.equal(table, table.T)
    assert table[0, 1] == table[2, 1] == table[3, 1]  # C-H of one methyl group
    assert table[0, 2] == table[2, 3]
    assert table[0, 1] != table[11, 10]  # of two
    assert len({int(table[1, atom]) for atom in range(22) if atom != 1}) == 21 - 6


def test_radial_functions_that_follow_the_noise_have_their_derivative(aldp):
    kinds = field_of(aldp).kinds
    distances = torch.linspace(0.05, 0.8, 231, dtype=torch.float64).expand(3, -1).clone()
    distances.requires_grad_(True)

    layout = pair_layout(torch.zeros(3, 22, 3, dtype=torch.float64), None)
    values, slopes = kinds.zoomed(TIMES, distances, layout)
    for k in range(values.shape[-1]):
        (slope,) = torch.autograd.grad(values[..., k].sum(), distances, retain_graph=True)
        torch.testing.assert_close(slopes[..., k], slope)
