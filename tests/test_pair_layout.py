"""Moves between atoms and pairs, against plain loops over the pairs."""

import pytest
import torch

from boltztilt.geometry import pair_indices
from boltztilt.networks import pair_layout
from boltztilt.networks.local_density import LocalDensityField
from boltztilt.networks.pair_layout import AllPairs, NeighbourPairs, close_pairs

N_ATOMS = 5


@pytest.fixture
def pairs() -> list[tuple[int, int]]:
    return [(int(i), int(j)) for i, j in pair_indices(N_ATOMS).T]


@pytest.fixture
def on_atoms(generator) -> torch.Tensor:
    return torch.randn(2, N_ATOMS, 3, generator=generator, dtype=torch.float64)


@pytest.fixture
def on_pairs(generator, pairs) -> torch.Tensor:
    return torch.randn(2, len(pairs), 3, generator=generator, dtype=torch.float64)


def test_values_of_both_ends(pairs, on_atoms):
    layout = AllPairs.of(on_atoms)
    first, second = layout.ends(on_atoms)
    for p, (i, j) in enumerate(pairs):
        torch.testing.assert_close(first[:, p], on_atoms[:, i])
        torch.testing.assert_close(second[:, p], on_atoms[:, j])
    torch.testing.assert_close(layout.difference(on_atoms), first - second)
    torch.testing.assert_close(layout.sum_ends(on_atoms), first + second)
    torch.testing.assert_close(layout.sum_ends(on_atoms, odd=True), first - second)


@pytest.mark.parametrize("odd", [False, True])
def test_sums_over_the_pairs_of_every_atom(odd, pairs, on_atoms, on_pairs):
    expected = torch.zeros_like(on_atoms)
    for p, (i, j) in enumerate(pairs):
        expected[:, i] += on_pairs[:, p]
        expected[:, j] += (-1 if odd else 1) * on_pairs[:, p]
    found = AllPairs.of(on_atoms).gather_to_atoms(on_pairs, odd=odd)
    torch.testing.assert_close(found, expected)


def test_vectors_spread_with_one_factor_for_either_end(pairs, on_atoms, on_pairs):
    factors = (on_pairs[..., 0], on_pairs[..., 1])
    layout = AllPairs.of(on_atoms)
    expected = torch.zeros_like(on_atoms)
    for p, (i, j) in enumerate(pairs):
        vector = on_atoms[:, i] - on_atoms[:, j]
        expected[:, i] += factors[0][:, p, None] * vector
        expected[:, j] -= factors[1][:, p, None] * vector
    torch.testing.assert_close(layout.spread(factors, layout.difference(on_atoms)), expected)


def test_layout_has_the_dtype_of_the_positions(on_atoms, dtype):
    assert AllPairs.of(on_atoms.to(dtype)).first.dtype == dtype


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("gathered", [lambda x: NeighbourPairs.of(x, 100.0), NeighbourPairs.every])
def test_gathers_move_as_products_with_matrices(gathered, odd, on_atoms, on_pairs):
    every, near = AllPairs.of(on_atoms), gathered(on_atoms)
    same = torch.testing.assert_close
    same(near.sum_ends(on_atoms, odd), every.sum_ends(on_atoms, odd))
    same(near.gather_to_atoms(on_pairs, odd), every.gather_to_atoms(on_pairs, odd))
    factors = (on_pairs[..., 0], on_pairs[..., 1])
    same(near.spread(factors, on_pairs), every.spread(factors, on_pairs))
    for layout in (every, near):
        edges = layout.edges(on_pairs, odd)
        same(edges.sum(2), every.gather_to_atoms(on_pairs, odd))
        there_and_back = layout.reverse(layout.reverse(edges))
        same(there_and_back, edges)
        same(layout.edges(on_pairs), layout.reverse(layout.edges(on_pairs)))


@pytest.mark.parametrize("n_dims", [2, 3])
def test_a_field_has_the_same_values_with_gathers(monkeypatch, n_dims):
    torch.manual_seed(0)
    field = LocalDensityField(n_hidden=8, n_channels=3, max_degree=2).double()
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    times = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    positions = torch.randn(3, 6, n_dims, dtype=torch.float64)

    def values_and_gradients():
        velocity, divergence = field.velocity_and_divergence(times, positions)
        loss = velocity.square().mean() + divergence.square().mean()
        gradients = torch.autograd.grad(loss, list(field.parameters()))
        return field(times, positions), velocity, divergence, *gradients

    assert isinstance(pair_layout.pair_layout(positions), AllPairs)
    expected = values_and_gradients()
    monkeypatch.setattr(pair_layout, "MOST_ATOMS_FOR_MATRICES", 5)
    assert isinstance(pair_layout.pair_layout(positions), NeighbourPairs)
    torch.testing.assert_close(values_and_gradients(), expected, rtol=1e-10, atol=1e-10)
    assert expected[2].abs().min() > 0.1


def test_pairs_within_the_cutoff_are_found_structure_by_structure(generator):
    positions = torch.rand(3, 12, 3, generator=generator) * torch.tensor([1.0, 3.0, 30.0]).view(
        3, 1, 1
    )
    found = {tuple(map(int, pair)) for pair in zip(*close_pairs(positions, 1.0), strict=True)}
    expected = {
        (b, i, j)
        for b in range(3)
        for i in range(12)
        for j in range(i + 1, 12)
        if float((positions[b, i] - positions[b, j]).norm()) < 1.0
    }
    assert found == expected
    layout = NeighbourPairs.of(positions, 1.0)
    assert layout.real.sum(1).tolist() == [sum(p[0] == b for p in expected) for b in range(3)]


def test_atoms_without_any_neighbour():
    layout = NeighbourPairs.of(10.0 * torch.arange(6.0).view(1, 2, 3), 1.0)
    assert layout.pair.shape == (1, 2, 0)
    assert layout.gather_to_atoms(torch.zeros(1, 0, 4)).shape == (1, 2, 4)
