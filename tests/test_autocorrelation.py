"""Correlated chains: known correlation times, and errors that are right."""

import math

import pytest
import torch

from boltztilt.analysis.autocorrelation import (
    autocorrelation_time,
    correlated_mean,
    effective_number,
)


def autoregressive(memory, n_chains, n_rounds, seed):
    """x_{t+1} = memory x_t + sqrt(1 - memory²) noise, stationary with unit variance."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n_rounds, n_chains, generator=generator, dtype=torch.float64)
    values = [noise[0]]
    for each in noise[1:]:
        values.append(memory * values[-1] + math.sqrt(1 - memory**2) * each)
    return torch.stack(values, dim=1)


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_time_of_an_autoregressive_process(memory):
    time = autocorrelation_time(autoregressive(memory, 20, 5000, seed=0))
    assert time == pytest.approx((1 + memory) / (1 - memory), rel=0.1)


def test_error_is_that_of_repeated_runs():
    scores = []
    for seed in range(100):
        mean = correlated_mean(autoregressive(0.8, 8, 500, seed))
        scores.append(mean.value / mean.error)
    spread = math.sqrt(sum(score**2 for score in scores) / len(scores))
    assert 0.7 < spread < 1.15  # below 1 in the mean: the larger of two errors counts


def test_chains_that_stay_apart_have_the_error_of_their_number():
    generator = torch.Generator().manual_seed(1)
    modes = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    values = modes + 1e-3 * torch.randn(6, 1000, generator=generator, dtype=torch.float64)
    assert correlated_mean(values).error >= float(modes.std()) / math.sqrt(6) * 0.999
    assert effective_number(values) < 7


def test_what_never_changes_has_no_known_error():
    mean = correlated_mean(torch.full((3, 10), 2.0, dtype=torch.float64))
    assert mean.value == 2.0
    assert math.isnan(mean.error)
