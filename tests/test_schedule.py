"""Choice of the tilt step: conditional ESS against closed forms, and its bisection."""

import math
from itertools import pairwise

import pytest
import torch

from boltztilt.tilt.schedule import SMALLEST_STEP, choose_step, conditional_ess

N = 100_000


def gaussian_rewards(generator, n=N):
    return torch.randn(n, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("step", [0.01, 0.1, 0.4, 0.7])
def test_cess_of_gaussian_rewards_is_exp_minus_h_squared(step, generator):
    """E[e^{hr}]² / E[e^{2hr}] = exp(-h² var r), whatever the mean."""
    replicas = torch.tensor(
        [conditional_ess(5 + 2 * gaussian_rewards(generator, 5000), step / 2) for _ in range(20)]
    )
    z = (replicas.mean() - math.exp(-(step**2))) / (replicas.std() / math.sqrt(20))
    assert abs(z) < 4  # the bias of one replica, of order 1/n, is far below its error
    assert replicas.std() < 0.03


def test_cess_is_one_without_a_step_and_one_over_n_with_a_huge_one(generator):
    rewards = gaussian_rewards(generator, 1000)
    assert conditional_ess(rewards, 0.0) == pytest.approx(1.0)
    assert conditional_ess(rewards, 1e6) == pytest.approx(1e-3)


def test_cess_does_not_see_a_constant_reward(generator):
    rewards = gaussian_rewards(generator, 1000)
    assert conditional_ess(rewards + 1e5, 0.3) == pytest.approx(conditional_ess(rewards, 0.3))


def test_cess_falls_with_the_step(generator):
    rewards = -(gaussian_rewards(generator, 1000).abs() ** -4)
    values = [conditional_ess(rewards, 10.0**k) for k in torch.arange(-12, 1, 0.5).tolist()]
    assert all(a >= b - 1e-12 for a, b in pairwise(values))


def test_bisection_hits_the_target_and_the_closed_form(generator):
    rewards = gaussian_rewards(generator)
    for target in (0.5, 0.8, 0.95):
        step = choose_step(rewards, 10.0, target)
        assert conditional_ess(rewards, step) == pytest.approx(target, abs=1e-9)
        assert step == pytest.approx(math.sqrt(-math.log(target)), rel=0.03)


def test_bisection_finds_tiny_steps_off_a_singular_core(generator):
    distances = torch.rand(2000, generator=generator, dtype=torch.float64)
    rewards = -(distances**-12)
    step = choose_step(rewards, 1.0, 0.8)
    assert step < 1e-3
    assert conditional_ess(rewards, step) == pytest.approx(0.8, abs=1e-3)


def test_step_is_the_largest_allowed_one_where_it_keeps_enough(generator):
    rewards = gaussian_rewards(generator, 1000)
    assert choose_step(rewards, 0.01, 0.8) == 0.01


def test_infinite_rewards_are_lost_at_any_step(generator):
    rewards = gaussian_rewards(generator, 1000)
    finite = rewards.clone()
    rewards[:100] = -math.inf
    rewards[100:150] = math.nan
    for step in (1e-9, 0.3):
        expected = 0.85 * conditional_ess(finite[150:], step)
        assert conditional_ess(rewards, step) == pytest.approx(expected)
    step = choose_step(rewards, 10.0, 0.8)
    assert conditional_ess(finite[150:], step) == pytest.approx(0.8 / 0.85, abs=1e-9)


def test_prior_weights_count_as_repetitions(generator):
    rewards = gaussian_rewards(generator, 1000)
    counts = torch.randint(1, 5, (1000,), generator=generator)
    repeated = rewards.repeat_interleave(counts)
    weighted = conditional_ess(rewards, 0.5, counts.double().log() + 7)
    assert weighted == pytest.approx(conditional_ess(repeated, 0.5))
    assert choose_step(rewards, 10.0, 0.8, counts.double().log()) == pytest.approx(
        choose_step(repeated, 10.0, 0.8)
    )


def test_samples_of_no_prior_weight_do_not_count(generator):
    rewards = gaussian_rewards(generator, 1000)
    prior = torch.zeros(1000, dtype=torch.float64)
    prior[:300] = -math.inf
    alone = conditional_ess(rewards[300:], 0.5)
    rewards[:150] = -math.inf
    assert conditional_ess(rewards, 0.5, prior) == pytest.approx(alone)


@pytest.mark.parametrize("n_finite", [0, 100])
def test_too_few_finite_rewards_are_refused(n_finite):
    rewards = torch.full((1000,), -math.inf, dtype=torch.float64)
    rewards[:n_finite] = 0.0
    with pytest.raises(ValueError, match=f"{n_finite} of 1000 rewards are finite"):
        choose_step(rewards, 1.0, 0.8)
    assert SMALLEST_STEP > 0


def test_a_tilt_that_never_ends_is_refused(generator):
    rewards = torch.randn(100, generator=generator, dtype=torch.float64) * 1e9
    assert 0 < choose_step(rewards, 1e-4, 0.8) < 1e-8
    with pytest.raises(ValueError, match="no finite integral; add a trap"):
        choose_step(rewards, 1e-7, 0.8)
