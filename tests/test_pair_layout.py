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


def test_sums_and_differences_of_both_ends(pairs, on_atoms):
    layout = AllPairs.of(on_atoms)
    for p, (i, j) in enumerate(pairs):
        both = on_atoms[:, i], on_atoms[:, j]
        torch.testing.assert_close(layout.sum_ends(on_atoms)[:, p], both[0] + both[1])
        torch.testing.assert_close(layout.difference(on_atoms)[:, p], both[0] - both[1])
        torch.testing.assert_close(layout.sum_ends(on_atoms, odd=True)[:, p], both[0] - both[1])


@pytest.mark.parametrize("odd", [False, True])
def test_edges_of_every_atom(odd, pairs, on_atoms, on_pairs):
    edges = AllPairs.of(on_atoms).edges(on_pairs, odd=odd)
    expected = torch.zeros_like(edges)
    for p, (i, j) in enumerate(pairs):
        expected[:, i, j] = on_pairs[:, p]
        expected[:, j, i] = (-1 if odd else 1) * on_pairs[:, p]
    torch.testing.assert_close(edges, expected)


@pytest.mark.parametrize("odd", [False, True])
def test_moves_can_be_differentiated_both_ways(odd, on_atoms, on_pairs):
    layout = AllPairs.of(on_atoms)
    for move, values in (
        (lambda x: layout.sum_ends(x, odd), on_atoms),
        (lambda x: layout.edges(x, odd), on_pairs),
    ):
        inputs = values.clone().requires_grad_()
        assert torch.autograd.gradcheck(move, (inputs,), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(move, (inputs,))


def test_layout_has_the_dtype_of_the_positions(on_atoms, dtype):
    assert AllPairs.of(on_atoms.to(dtype)).at_first.dtype == dtype


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("other", [lambda x: NeighbourPairs.of(x, 100.0), NeighbourPairs.every])
def test_both_layouts_move_alike(other, odd, on_atoms, on_pairs):
    every, near = AllPairs.of(on_atoms), other(on_atoms)
    same = torch.testing.assert_close
    same(near.sum_ends(on_atoms, odd), every.sum_ends(on_atoms, odd))
    for layout in (every, near):
        edges = layout.edges(on_pairs, odd)
        same(edges.sum(2), every.edges(on_pairs, odd).sum(2))
        there_and_back = layout.reverse(layout.reverse(edges))
        same(there_and_back, edges)
        same(layout.edges(on_pairs), layout.reverse(layout.edges(on_pairs)))


@pytest.mark.parametrize("n_dims", [2, 3])
def test_a_field_has_the_same_values_with_both_layouts(monkeypatch, n_dims):
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
    assert layout.edges(torch.zeros(1, 0, 4)).sum(2).shape == (1, 2, 4)
