"""Linear interpolant and the law of its training times."""

import math

import pytest
import torch

from boltztilt.tilt.interpolant import Bridge, Pairs, draw_times, interpolate

SMALLEST_NOISE = 0.005


def pairs(n, generator):
    starts, ends = torch.randn(2, n, 3, 2, generator=generator)
    return Pairs(starts, ends, torch.rand(n, generator=generator))


def uniforms(times):
    """The times mapped to [0, 1], uniform if 1 - t is log-uniform on [smallest noise, 1]."""
    return torch.log1p(-times.double()) / math.log(SMALLEST_NOISE)


def test_paths_run_straight_from_start_to_end(generator):
    drawn = pairs(5, generator)
    assert torch.equal(interpolate(drawn, torch.zeros(5)).positions, drawn.starts)
    assert torch.equal(interpolate(drawn, torch.ones(5)).positions, drawn.ends)
    middle = interpolate(drawn, torch.full((5,), 0.25)).positions
    torch.testing.assert_close(middle, 0.75 * drawn.starts + 0.25 * drawn.ends)


def test_rate_is_the_time_derivative_of_the_position(generator):
    drawn = pairs(7, generator)
    times = torch.rand(7, generator=generator)
    _, rate = torch.func.jvp(
        lambda t: interpolate(drawn, t).positions, (times,), (torch.ones_like(times),)
    )
    torch.testing.assert_close(interpolate(drawn, times).rates, rate)


def test_every_time_of_a_pair_keeps_its_weight_and_end_points(generator):
    drawn = pairs(4, generator)
    times = draw_times(4, 3, SMALLEST_NOISE, generator)
    bridge = interpolate(drawn, times)
    assert len(bridge.positions) == 12
    for block in range(3):
        part = slice(4 * block, 4 * block + 4)
        alone = interpolate(drawn, times[part])
        assert torch.equal(bridge.weights[part], drawn.weights)
        assert torch.equal(bridge.positions[part], alone.positions)
        assert torch.equal(bridge.rates[part], alone.rates)


def test_one_minus_time_is_log_uniform(generator):
    from scipy.stats import kstest

    # Single pairs have independent times, for which the Kolmogorov-Smirnov test is meant.
    times = torch.cat([draw_times(1, 1, SMALLEST_NOISE, generator) for _ in range(2000)])
    assert kstest(uniforms(times).numpy(), "uniform").pvalue > 0.01
    assert times.min() >= 0
    assert times.max() <= 1 - SMALLEST_NOISE + 1e-6


@pytest.mark.parametrize(("n_pairs", "times_per_pair"), [(64, 1), (64, 4), (50, 3)])
def test_times_are_stratified_over_pairs_and_blocks(n_pairs, times_per_pair, generator):
    times = draw_times(n_pairs, times_per_pair, SMALLEST_NOISE, generator)
    n = n_pairs * times_per_pair
    strata = (uniforms(times) * n).sort().values
    expected = torch.arange(n, dtype=torch.float64)
    # One time in each of n equal strata; float32 times may round onto the edge of theirs.
    assert (strata >= expected - 0.01).all()
    assert (strata <= expected + 1.01).all()
    blocks = (uniforms(times).view(times_per_pair, n_pairs) * times_per_pair - 1e-6).long()
    assert (blocks == torch.arange(times_per_pair)[:, None]).all()


def test_times_do_not_depend_on_the_place_of_a_pair(generator):
    first = torch.stack(
        [uniforms(draw_times(2, 1, SMALLEST_NOISE, generator)) for _ in range(2000)]
    )
    z = (first.mean(0) - 0.5) / math.sqrt(1 / 12 / 2000)
    assert z.abs().max() < 3.5


def test_points_in_order_stay_with_their_times(generator):
    positions, rates = torch.randn(2, 9, 4, 3, generator=generator)
    times, weights, factors = torch.rand(3, 9, generator=generator)
    bridge = Bridge(times, positions, rates, weights, factors)
    ordered = bridge.in_order()
    assert (ordered.times.diff() > 0).all()
    for now, before in zip(ordered.times, ordered.positions, strict=True):
        assert torch.equal(before, positions[times == now][0])
    for part in zip(ordered, bridge, strict=True):
        torch.testing.assert_close(part[0].sum(), part[1].sum())
