"""Moves between atoms and pairs, against plain loops over the pairs."""

import pytest
import torch

from boltztilt.geometry import pair_indices
from boltztilt.networks.pair_layout import PairLayout

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
    layout = PairLayout.of(on_atoms)
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
    found = PairLayout.of(on_atoms).gather_to_atoms(on_pairs, odd=odd)
    torch.testing.assert_close(found, expected)


def test_vectors_spread_with_one_factor_for_either_end(pairs, on_atoms, on_pairs):
    factors = (on_pairs[..., 0], on_pairs[..., 1])
    layout = PairLayout.of(on_atoms)
    expected = torch.zeros_like(on_atoms)
    for p, (i, j) in enumerate(pairs):
        vector = on_atoms[:, i] - on_atoms[:, j]
        expected[:, i] += factors[0][:, p, None] * vector
        expected[:, j] -= factors[1][:, p, None] * vector
    torch.testing.assert_close(layout.spread(factors, layout.difference(on_atoms)), expected)


def test_layout_has_the_dtype_of_the_positions(on_atoms, dtype):
    assert PairLayout.of(on_atoms.to(dtype)).first.dtype == dtype
