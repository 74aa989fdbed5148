"""Regression objectives: fixed points, gradients, bias and noise, on Gaussians with exact fields.

The base is N(0, 1) and the reward -(k - 1) x²/2, so that rho_a = N(0, v) with 1/v = 1 + a (k - 1)
and the exact field at a fixed time is a slope times x.
"""

import math

import pytest
import torch
from torch import nn

from boltztilt.tilt.objectives import (
    explicit_target,
    implicit_target,
    tilt_weights,
)

STIFFNESS = 5.0
TIME = 0.7


def variance(a):
    return 1 / (1 + a * (STIFFNESS - 1))


def slope(a):
    """b(x) / x of the exact field at TIME."""
    ends, noise = TIME * variance(a), 1 - TIME
    return (ends - noise) / (noise**2 + TIME * ends)


def reward(ends):
    return -0.5 * (STIFFNESS - 1) * ends.double().square().sum(dim=(1, 2))


def bridge(a, n, generator):
    """Positions, rates and rewards of independent pairs at level a."""
    starts, ends = torch.randn(2, n, 1, 1, generator=generator, dtype=torch.float64)
    ends = ends * math.sqrt(variance(a))
    return (1 - TIME) * starts + TIME * ends, ends - starts, reward(ends)


def fit(positions, targets, weights=1.0):
    """The slope of the weighted least-squares line through the origin."""
    return float((weights * positions * targets).sum() / (weights * positions.square()).sum())


def z_score(estimates, exact):
    estimates = torch.tensor(estimates, dtype=torch.float64)
    return float((estimates.mean() - exact) / (estimates.std() / math.sqrt(len(estimates))))


def implicit_fixed_point(positions, rates, weights, old, control_variate):
    """The slope at which regression on the implicit target stays where it is.

    One regression takes the slope s to an affine function of s, which two values determine.
    """
    at_zero, at_one = (
        fit(
            positions,
            implicit_target(old * positions, new * positions, rates, weights, control_variate),
        )
        for new in (0.0, 1.0)
    )
    return at_zero / (1 - (at_one - at_zero))


@pytest.mark.parametrize("step", [0.05, 0.6])
def test_esscher_weighted_mean_rate_is_the_tilted_field(step, generator):
    estimates = []
    for _ in range(25):
        positions, rates, rewards = bridge(0.2, 8000, generator)
        estimates.append(fit(positions, rates, tilt_weights(step * rewards)[:, None, None]))
    assert abs(z_score(estimates, slope(0.2 + step))) < 3.5
    assert abs(z_score(estimates, slope(0.2))) > 8


@pytest.mark.parametrize("control_variate", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("step", [0.05, 0.6])
def test_implicit_fixed_point_is_exact_for_any_step_and_control(step, control_variate, generator):
    estimates = []
    for _ in range(25):
        positions, rates, rewards = bridge(0.2, 8000, generator)
        weights = tilt_weights(step * rewards)
        estimates.append(
            implicit_fixed_point(positions, rates, weights, slope(0.2), control_variate)
        )
    assert abs(z_score(estimates, slope(0.2 + step))) < 3.5
    assert abs(z_score(estimates, slope(0.2))) > 8


def test_wrong_old_field_is_carried_along_unless_the_control_is_zero(generator):
    positions, rates, rewards = bridge(0.2, 100_000, generator)
    weights = tilt_weights(0.1 * rewards)
    wrong = slope(0.2) + 0.5
    carried = implicit_fixed_point(positions, rates, weights, wrong, 1.0)
    free = implicit_fixed_point(positions, rates, weights, wrong, 0.0)
    assert abs(carried - slope(0.3)) > 0.3
    assert abs(free - slope(0.3)) < 0.05


def test_covariance_ode_agrees_with_the_change_of_the_exact_field(generator):
    """Explicit tilt matching averages (target - b_a) / h to Cov(dI/dt, r | I_t) = d b_a / d a."""
    a, estimates = 0.3, []
    for _ in range(40):
        positions, rates, rewards = bridge(a, 5000, generator)
        old = slope(a) * positions
        target = explicit_target(old, rates, rewards, float(rewards.mean()))
        estimates.append(fit(positions, target - old))
    derivative = (slope(a + 1e-4) - slope(a - 1e-4)) / 2e-4
    assert abs(z_score(estimates, derivative)) < 3.5
    assert abs(derivative) > 0.5


def exact_explicit_slope(a, old, step):
    """The slope explicit tilt matching regresses to, by Gauss-Hermite quadrature of both ends."""
    import numpy as np

    nodes, masses = (torch.as_tensor(part) for part in np.polynomial.hermite_e.hermegauss(12))
    starts, ends = torch.meshgrid(nodes, math.sqrt(variance(a)) * nodes, indexing="ij")
    starts, ends = starts.reshape(-1, 1, 1), ends.reshape(-1, 1, 1)
    masses = torch.outer(masses, masses).reshape(-1, 1, 1)
    positions, rates, scaled = (1 - TIME) * starts + TIME * ends, ends - starts, step * reward(ends)
    baseline = float((masses.flatten() * scaled).sum() / masses.sum())
    return fit(positions, explicit_target(old * positions, rates, scaled, baseline), masses)


def explicit_ladder_error(n_rungs):
    """Error of the slope at a = 1 after n equal explicit steps."""
    current = slope(0.0)
    for rung in range(n_rungs):
        current = exact_explicit_slope(rung / n_rungs, current, 1 / n_rungs)
    return current - slope(1.0)


def test_explicit_tilt_matching_is_of_first_order_in_the_step():
    errors = torch.tensor([explicit_ladder_error(n) for n in (32, 64, 128)]).abs()
    orders = (errors[:-1] / errors[1:]).log2()
    print(f"explicit tilt matching: errors {errors.tolist()}, orders {orders.tolist()}")
    assert ((orders > 0.9) & (orders < 1.1)).all()


def test_explicit_baseline_moves_no_mean_but_the_noise(generator):
    positions, rates, rewards = bridge(0.0, 20_000, generator)
    old, scaled = slope(0.0) * positions, 0.1 * rewards
    spread = [
        float((explicit_target(old, rates, scaled, baseline) - old).var())
        for baseline in (float(scaled.mean()), 0.0)
    ]
    assert spread[0] < 0.7 * spread[1]
    estimates = []
    for _ in range(40):
        positions, rates, rewards = bridge(0.0, 5000, generator)
        old, scaled = slope(0.0) * positions, 0.1 * rewards
        first, second = (explicit_target(old, rates, scaled, c) for c in (0.0, 3.0))
        estimates.append(fit(positions, first - second))
    assert abs(z_score(estimates, 0.0)) < 3.5


def squared_error(predicted, target):
    return (predicted - target).square().sum(dim=(-1, -2))


def gradients(network, old, n_batches, step, generator):
    """Gradients of the implicit (c = 1) and the weighted flow matching loss, batch by batch."""
    found = {1.0: [], 0.0: []}
    for _ in range(n_batches):
        positions, rates, rewards = bridge(0.2, 128, generator)
        weights = tilt_weights(step * rewards)
        for control_variate, rows in found.items():
            # The trained field starts as the old one: exact there, with the network's gradient.
            learned = network(positions)
            new = old * positions + learned - learned.detach()
            target = implicit_target(old * positions, new, rates, weights, control_variate)
            loss = squared_error(new, target).mean()
            parts = torch.autograd.grad(loss, list(network.parameters()))
            rows.append(torch.cat([part.flatten() for part in parts]))
    return {control: torch.stack(rows) for control, rows in found.items()}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def test_gradient_noise_of_implicit_is_below_weighted_flow_matching(generator):
    ratios = []
    for step in (0.02, 0.04, 0.08):
        found = gradients(network(), slope(0.2), 100, step, generator)
        ratios.append(float(found[1.0].var(dim=0).sum() / found[0.0].var(dim=0).sum()))
        print(f"h = {step}: gradient variance ITM / WFM = {ratios[-1]:.5f}")
        noise = (found[1.0] - found[0.0]).std(dim=0) / math.sqrt(100)
        z = (found[1.0] - found[0.0]).mean(dim=0) / noise
        assert z.abs().max() < 4.5  # equal means: the control variate is unbiased
    assert max(ratios) < 0.2
    # Proposition 7: the variance of ITM falls with h², that of WFM does not.
    assert 2.5 < ratios[1] / ratios[0] < 6
    assert 2.5 < ratios[2] / ratios[1] < 6


def test_zero_control_gives_the_gradient_of_weighted_flow_matching(generator):
    positions, rates, rewards = bridge(0.2, 64, generator)
    weights = tilt_weights(0.5 * rewards)
    model = network()
    new = model(positions)
    implicit = squared_error(new, implicit_target(positions, new, rates, weights, 0.0)).mean()
    matching = (weights * squared_error(new, rates)).mean()
    parameters = list(model.parameters())
    for left, right in zip(
        torch.autograd.grad(implicit, parameters, retain_graph=True),
        torch.autograd.grad(matching, parameters),
        strict=True,
    ):
        torch.testing.assert_close(left, right)


def test_implicit_target_carries_no_gradient(generator):
    positions, rates, _ = bridge(0.2, 4, generator)
    new = positions.clone().requires_grad_(True)
    target = implicit_target(positions, new, rates, torch.ones(4, dtype=torch.float64))
    assert not target.requires_grad
    torch.testing.assert_close(target, positions)  # w = 1: the paper's target is b_a


def test_tilt_weights_survive_huge_rewards_and_average_to_one():
    scaled = torch.tensor([1e4, 1e4 + math.log(3), -1e4], dtype=torch.float64)
    expected = torch.tensor([0.75, 2.25, 0.0], dtype=torch.float64)
    torch.testing.assert_close(tilt_weights(scaled), expected)


def test_non_finite_rewards_weigh_zero():
    scaled = torch.tensor([0.0, math.nan, -math.inf, math.inf, 0.0], dtype=torch.float64)
    expected = torch.tensor([2.5, 0, 0, 0, 2.5], dtype=torch.float64)
    torch.testing.assert_close(tilt_weights(scaled), expected)


def test_no_finite_reward_is_refused():
    with pytest.raises(ValueError, match="none of 3 samples has a finite reward"):
        tilt_weights(torch.full((3,), math.nan, dtype=torch.float64))


def test_explicit_target_refuses_infinite_rewards(generator):
    positions, rates, rewards = bridge(0.0, 4, generator)
    rewards[0] = -math.inf
    with pytest.raises(ValueError, match=r"infinite reward.*use objective 'itm' or 'wfm'"):
        explicit_target(positions, rates, rewards)
