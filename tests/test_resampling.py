"""Systematic resampling: counts, unbiasedness, independent groups."""

import torch

from boltztilt.sampling.resampling import systematic_resampling


def test_each_index_is_drawn_in_proportion_and_without_bias(generator):
    weights = torch.tensor([0.1, 0.0, 2.0, 0.7, 0.3], dtype=torch.float64).repeat(4000, 1)
    n = 7
    chosen = systematic_resampling(weights, n, generator)
    counts = torch.nn.functional.one_hot(chosen, 5).sum(1).double()
    expected = n * weights[0] / weights[0].sum()
    assert ((counts - expected).abs() < 1 + 1e-9).all()
    error = counts.std(0) / 4000**0.5
    assert ((counts.mean(0) - expected).abs() <= 4 * error + 1e-9).all()


def test_groups_draw_from_their_own_weights(generator):
    weights = torch.eye(3, dtype=torch.float64)
    chosen = systematic_resampling(weights, 2, generator)
    assert chosen.tolist() == [[0, 0], [1, 1], [2, 2]]
