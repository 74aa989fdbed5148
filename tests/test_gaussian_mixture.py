"""The Gaussian mixture and its exact tilt against quadrature and importance weights."""

import pytest
import torch

from boltztilt.potentials.gaussian_mixture import GaussianMixture, LinearReward
from boltztilt.testing import check_potential

SLOPE = torch.tensor([[0.8, -0.5]], dtype=torch.float64)


def mixture(log_z: float = 0.0) -> GaussianMixture:
    """Returns three unequal wells in the plane."""
    means = [[[-2.0, 0.0]], [[1.5, 1.0]], [[0.5, -2.0]]]
    return GaussianMixture(means, stds=[0.5, 0.8, 0.3], weights=[0.5, 0.2, 0.3], log_z=log_z)


def plane(half_width: float = 9.0, n: int = 901) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the points of a fine grid over the plane and the area of its cells."""
    axis = torch.linspace(-half_width, half_width, n, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis)[:, None, :], (axis[1] - axis[0]) ** 2


def test_density_integrates_to_one():
    grid, cell = plane()
    assert (mixture().log_density(grid).exp().sum() * cell).item() == pytest.approx(1.0)


def test_boltzmann_factor_integrates_to_exp_log_z():
    grid, cell = plane()
    integral = (-mixture(log_z=1.7).energy(grid)).exp().sum() * cell
    assert integral.log().item() == pytest.approx(1.7)


def test_single_component_is_the_normal_distribution(generator):
    positions = torch.randn(10, 2, 3, generator=generator, dtype=torch.float64)
    normal = torch.distributions.Normal(torch.full((2, 3), 0.4, dtype=torch.float64), 0.7)
    expected = normal.log_prob(positions).sum((1, 2))
    single = GaussianMixture(torch.full((1, 2, 3), 0.4), stds=0.7)
    torch.testing.assert_close(single.log_density(positions), expected)


def test_samples_follow_the_density(generator):
    """Component occupation and mean of the samples within 4 standard errors."""
    n = 20_000
    samples = mixture().sample(n, generator, torch.float64)
    nearest = (samples - mixture().means[:, 0]).norm(dim=2).argmin(1)
    for k, weight in enumerate([0.5, 0.2, 0.3]):
        error = (weight * (1 - weight) / n) ** 0.5
        assert abs((nearest == k).double().mean() - weight) < 4 * error + 0.005
    z = (samples.mean(0) - mixture().mean()) / (samples.std(0) / n**0.5)
    assert z.abs().max() < 4


def test_tilted_energy_is_the_energy_minus_the_reward(generator):
    positions = mixture().sample(100, generator, torch.float64)
    expected = mixture(0.3).energy(positions) + LinearReward(SLOPE).energy(positions)
    torch.testing.assert_close(mixture(0.3).tilted(SLOPE).energy(positions), expected)


def test_tilted_log_z_equals_the_importance_weight_average(generator):
    n = 100_000
    reward = LinearReward(SLOPE).reward(mixture().sample(n, generator, torch.float64))
    weights = reward.exp()
    z = (weights.mean() - torch.tensor(mixture().tilted(SLOPE).log_z).exp()) / (
        weights.std() / n**0.5
    )
    assert abs(z) < 4


def test_tilted_mean_equals_the_importance_weighted_mean(generator):
    n = 100_000
    samples = mixture().sample(n, generator, torch.float64)
    weights = LinearReward(SLOPE).reward(samples).softmax(0)[:, None, None]
    estimate = (weights * samples).sum(0)
    error = (weights * (samples - estimate)).square().sum(0).sqrt()
    assert ((estimate - mixture().tilted(SLOPE).mean()) / error).abs().max() < 4


def test_tilting_twice_is_tilting_by_the_sum(generator):
    twice, once = mixture().tilted(0.4 * SLOPE).tilted(0.6 * SLOPE), mixture().tilted(SLOPE)
    torch.testing.assert_close(twice.means, once.means)
    torch.testing.assert_close(twice.weights, once.weights)
    assert twice.log_z == pytest.approx(once.log_z)


@pytest.mark.parametrize("potential", [mixture(), mixture().tilted(SLOPE), LinearReward(SLOPE)])
def test_passes_the_battery(potential):
    check_potential(potential)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"means": [[0.0, 1.0]]}, "components, atoms, dims"),
        ({"means": [[[0.0]]], "stds": -1.0}, "positive stds"),
        ({"means": [[[0.0]]], "weights": [0.5, 0.5]}, "as many"),
    ],
)
def test_bad_components_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**arguments)
