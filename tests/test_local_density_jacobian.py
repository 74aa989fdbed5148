"""The Jacobian of the local-density field against automatic differentiation."""

import pytest
import torch

from boltztilt.networks import pair_layout
from boltztilt.networks.local_density import LocalDensityField
from boltztilt.networks.local_density_jacobian import has_jacobian, learned_jacobian
from boltztilt.testing import jittered_lattice

EXACT = 1e-9
TIMES = torch.tensor([0.0, 0.5, 0.97], dtype=torch.float64)


def local_density(max_degree: int, **settings) -> LocalDensityField:
    """A small field in float64, moved off its start: a fresh one has no learned part."""
    with torch.random.fork_rng():
        torch.manual_seed(max_degree)
        field = LocalDensityField(n_hidden=12, n_channels=4, max_degree=max_degree, **settings)
        for parameter in field.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return field.double().requires_grad_(False)


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("max_degree", [1, 2, 3])
def test_jacobian_equals_that_of_autograd(max_degree, n_dims, generator):
    field = local_density(max_degree)
    for n_atoms in (2, 5):
        positions = 0.6 * jittered_lattice(n_atoms, n_dims, generator, n=len(TIMES))
        found = learned_jacobian(field, TIMES, positions)
        torch.testing.assert_close(found.values, field.learned(TIMES, positions))
        for time, configuration, jacobian in zip(TIMES, positions, found.jacobian, strict=True):

            def learned(x, time=time):
                return field.learned(time[None], x[None])[0]

            expected = torch.autograd.functional.jacobian(learned, configuration).flatten(2)
            torch.testing.assert_close(jacobian, expected, atol=EXACT, rtol=EXACT)
            assert expected.abs().max() > 0.1


def test_nothing_changes_when_all_atoms_move_alike(generator):
    field = local_density(2)
    positions = 0.6 * jittered_lattice(5, 3, generator, n=len(TIMES))
    jacobian = learned_jacobian(field, TIMES, positions).jacobian.unflatten(-1, (5, 3))
    assert jacobian.sum(-2).abs().max() < EXACT * jacobian.abs().max()


def test_only_alike_atoms_without_cutoff_have_one():
    assert has_jacobian(local_density(1))
    assert not has_jacobian(local_density(1, cutoff=2.0))


def test_large_clusters_have_the_same(monkeypatch, generator):
    field = local_density(2)
    positions = 0.6 * jittered_lattice(6, 3, generator, n=len(TIMES))
    expected = learned_jacobian(field, TIMES, positions)
    monkeypatch.setattr(pair_layout, "MOST_ATOMS_FOR_MATRICES", 5)
    assert isinstance(pair_layout.pair_layout(positions), pair_layout.NeighbourPairs)
    found = learned_jacobian(field, TIMES, positions)
    torch.testing.assert_close(found, expected, atol=EXACT, rtol=EXACT)
