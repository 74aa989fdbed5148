"""Stochastic transport with exact fields of Gaussians: its laws, and what it forgets."""

import math

import pytest
import torch

from boltztilt.sampling.base import BondGaussian, Gaussian
from boltztilt.sampling.flow import integrate, warped_grid
from boltztilt.sampling.stochastic import (
    LEAST_NOISE,
    MOST_NOISE,
    earlier_time,
    round_times,
    stochastic_flow,
    with_noise,
)

N = 3000
CHAIN = torch.tensor([[0, 1, 2], [1, 2, 3]])


def exact_field(width: float, base_std: float = 1.0):
    """E[x1 - x0 | x_t] for the base N(0, S) and the target N(0, width² S / base_std²)."""

    def velocity(times, positions):
        t = times[:, None, None]
        rate = t * width**2 - (1 - t) * base_std**2
        return positions * rate / ((1 - t) ** 2 * base_std**2 + t**2 * width**2)

    return velocity


def relative_variance(positions, base) -> tuple[float, float]:
    """Mean of x S⁻¹ x over its expectation under the base, and its standard error."""
    squares = base.squared_norm(positions) / base.dof
    return float(squares.mean()), float(squares.std()) / math.sqrt(len(squares))


@pytest.mark.parametrize(
    "base",
    [
        Gaussian(4),
        Gaussian(4, std=0.3),
        Gaussian(2, n_dims=2, std=2.0),
        Gaussian(1, centered=False),
    ],
    ids=["unit", "narrow", "planar", "not centred"],
)
@pytest.mark.parametrize("ratio", [0.05, 0.5, 3.0])
def test_exact_field_of_a_gaussian_gives_its_variance(ratio, base, generator):
    velocity = exact_field(ratio * base.std, base.std)
    starts = base.sample(N, generator)
    ends = stochastic_flow(velocity, base, starts, list(range(N)), n_rounds=25)
    variance, error = relative_variance(ends, base)
    assert abs(variance / ratio**2 - 1) < 4 * error / ratio**2
    if base.centered:
        assert ends.mean(1).abs().max() < 1e-5 * base.std


def test_noise_has_the_covariance_of_the_base(generator):
    """A chain of bonds half as wide as its base: the modes keep their proportions."""
    base = BondGaussian(4, std=0.2, bonds=CHAIN)
    ends = stochastic_flow(
        exact_field(0.5), base, base.sample(N, generator), list(range(N)), n_rounds=25
    )
    for first, second in ((0, 1), (1, 2), (0, 3)):
        apart = (ends[:, first] - ends[:, second]).square()
        expected = 0.25 * base.pair_spreads()[first, second] ** 2
        error = apart.std() / math.sqrt(apart.numel())
        assert abs(apart.mean() - expected) < 4 * error


def test_the_start_hardly_decides_on_the_end(generator):
    """The flow alone of two Gaussians scales every start, a correlation of one."""
    base = Gaussian(4)
    starts = base.sample(N, generator)
    ends = stochastic_flow(exact_field(0.5), base, starts, list(range(N)), n_rounds=25)
    correlation = float((starts * ends).mean() / (starts.std() * ends.std()))
    assert abs(correlation) < 0.06


def test_errors_are_forgotten_that_the_flow_carries_to_the_end(generator):
    """A field that is too strong until t = 0.4, and exact from then on."""
    exact, base = exact_field(0.5), Gaussian(4)

    def too_strong(times, positions):
        early = (times < 0.4).to(positions)[:, None, None]
        return exact(times, positions) + 2 * early * positions

    starts = base.sample(N, generator)
    flow = integrate(too_strong, starts, warped_grid(100), with_density=False).positions
    ends = stochastic_flow(too_strong, base, starts, list(range(N)), n_rounds=50)
    excess_flow, excess = (relative_variance(each, base)[0] / 0.25 - 1 for each in (flow, ends))
    assert excess_flow > 3
    assert abs(excess) < 0.1 * excess_flow


def test_noise_carries_to_the_exact_variance_of_the_earlier_time(generator):
    """Structures at rest at 0 have variance (1-t)² at time t, and then (1-s)² at time s < t."""
    base, late, early = Gaussian(50, std=0.7), 0.9, 0.6
    positions = (1 - late) * base.sample(N, generator)
    moved = with_noise(positions, late, early, base.sample(N, generator))
    variance, error = relative_variance(moved, base)
    assert abs(variance - (1 - early) ** 2) < 4 * error


def test_a_round_goes_back_as_far_as_half_of_its_way_ahead():
    times = round_times(7)
    ratios = (1 - times) / times
    torch.testing.assert_close(ratios[0].item(), MOST_NOISE)
    torch.testing.assert_close(ratios[-1].item(), LEAST_NOISE)
    steps = ratios[:-1] / ratios[1:]
    torch.testing.assert_close(steps, steps[:1].expand(7))
    earlier = earlier_time(times[3], times[4])
    torch.testing.assert_close((1 - earlier) / earlier, ratios[3] * steps[0])


def test_every_structure_has_its_own_noise(generator):
    base, starts = Gaussian(3), Gaussian(3).sample(4, generator)
    whole = stochastic_flow(exact_field(0.5), base, starts, [5, 6, 7, 8], n_rounds=3)
    part = stochastic_flow(exact_field(0.5), base, starts[2:], [7, 8], n_rounds=3)
    torch.testing.assert_close(part, whole[2:])
    other = stochastic_flow(exact_field(0.5), base, starts[2:], [8, 7], n_rounds=3)
    assert (other - whole[2:]).abs().max() > 0.1


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match=r"n_rounds is 0.*at least one"):
        round_times(0)
