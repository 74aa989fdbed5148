"""Free energies as z-scores against closed forms: the value and its error bar."""

import math

import pytest
import torch

from boltztilt.analysis.free_energy import bar


def gaussian_log_weights(n, seed, std, log_z):
    """log w of exp(log_z) N(0, 1) against N(0, std²), at samples of each."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, n, generator=generator, dtype=torch.float64)
    samples = noise * torch.tensor([[std], [1.0]], dtype=torch.float64)
    return log_z - 0.5 * samples.square() + 0.5 * (samples / std).square() + math.log(std)


def test_bar_finds_log_z_with_honest_errors():
    pytest.importorskip("pymbar")
    log_z = -2.0
    estimates = [bar(*gaussian_log_weights(500, seed, 2.0, log_z)) for seed in range(100)]
    z = torch.tensor([(estimate.value - log_z) / estimate.error for estimate in estimates])
    assert abs(z.mean()) < 0.35
    assert 0.8 < z.std() < 1.25


def test_errors_of_bar_are_honest_where_samples_of_the_target_come_in_groups():
    pytest.importorskip("pymbar")
    estimates, independent = [], []
    for seed in range(60):
        forward, reverse = gaussian_log_weights(900, seed, 2.0, 0.0)
        copies = reverse[:100].repeat(9)
        estimates.append(bar(forward, copies, torch.arange(100).repeat(9)))
        independent.append(bar(forward, copies))
    z = torch.tensor([estimate.value / estimate.error for estimate in estimates])
    assert abs(z.mean()) < 0.45
    assert 0.75 < z.std() < 1.3
    assert torch.tensor([each.value / each.error for each in independent]).std() > 1.5
    assert math.isnan(bar(forward, copies, torch.zeros(900, dtype=torch.int64)).error)


def test_bar_survives_samples_of_infinite_energy():
    pytest.importorskip("pymbar")
    forward, reverse = gaussian_log_weights(4000, 0, 1.5, 1.0)
    # One sample in five of a wider q falls where the target is forbidden: w = 0 there.
    padded = torch.cat([forward + math.log(1.25), torch.full((1000,), -math.inf)])
    estimate = bar(padded, reverse + math.log(1.25))
    assert abs(estimate.value - 1.0) < 3.5 * estimate.error
