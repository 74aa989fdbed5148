"""Time features: the waves of t and of log(1 - t) that they are made of."""

import math

import torch
from torch import nn

from boltztilt.networks.time_features import SMALLEST_NOISE, TimeFeatures


def raw_features(times: torch.Tensor) -> torch.Tensor:
    """What enters the perceptron."""
    features = TimeFeatures(8)
    features.perceptron = nn.Identity()
    return features(times)


def test_raw_features_are_ramps_and_waves():
    time = 0.3
    noise = math.log(1 - time)
    phases = [math.pi * k * time for k in (1, 2, 3)] + [k * noise for k in (0.5, 1, 2, 3)]
    sines, cosines = [math.sin(p) for p in phases], [math.cos(p) for p in phases]
    expected = torch.tensor([[time, noise / 5, *sines, *cosines]], dtype=torch.float64)
    found = raw_features(torch.tensor([time], dtype=torch.float64))
    torch.testing.assert_close(found, expected)


def test_features_are_finite_over_the_whole_flow(dtype):
    times = torch.tensor([0.0, 0.5, 1 - 1e-7, 1.0], dtype=dtype)
    features = TimeFeatures(8).to(dtype)(times)
    assert features.shape == (4, 8)
    assert torch.isfinite(features).all()


def test_late_times_are_told_apart_until_the_smallest_noise():
    """Noises 1e-2 and 1e-3 differ though t hardly does; below the smallest nothing differs."""
    late = raw_features(1 - torch.tensor([1e-2, 1e-3], dtype=torch.float64))
    assert (late[0] - late[1]).abs().max() > 0.5
    last = raw_features(1 - torch.tensor([SMALLEST_NOISE / 2, 0.0], dtype=torch.float64))
    assert (last[0] - last[1]).abs().max() < 10 * SMALLEST_NOISE


def test_features_of_a_time_do_not_depend_on_its_batch():
    torch.manual_seed(0)
    features, times = TimeFeatures(8).double(), torch.linspace(0, 1, 5, dtype=torch.float64)
    together = features(times)
    alone = torch.cat([features(time[None]) for time in times])
    torch.testing.assert_close(together, alone)
