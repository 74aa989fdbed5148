"""Metrics against closed forms, POT, and the same thing computed by hand."""

import math

import pytest
import torch

from boltztilt.analysis.metrics import (
    energy_wasserstein,
    eubo,
    forward_ess,
    geometric_wasserstein,
    kish_ess,
    noise_floor,
    pair_distance_wasserstein,
    pair_distances,
    radial_distribution,
    short_pair_occupancy,
    short_pairs,
)


def normal(n, seed, mean=0.0, std=1.0):
    generator = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(n, generator=generator, dtype=torch.float64)


def log_normal_ratio(x, std):
    """log p/q at x for p = N(0, 1) and q = N(0, std²)."""
    return -0.5 * x.square() + 0.5 * (x / std).square() + math.log(std)


@pytest.mark.parametrize("order", [1, 2])
def test_shifted_sets_are_as_far_apart_as_the_shift(order):
    values = normal(1000, 0)
    assert energy_wasserstein(values, values + 2.5, order=order) == pytest.approx(2.5)


def test_wasserstein_between_gaussians_has_its_closed_form():
    first, second = normal(200_000, 1), normal(200_000, 2, mean=1.0, std=2.0)
    # W2² = (difference of means)² + (difference of standard deviations)².
    assert energy_wasserstein(first, second, order=2) == pytest.approx(math.sqrt(2), abs=0.02)
    wide = second - second.mean()
    # W1 between centred Gaussians is the difference of standard deviations times E|z|.
    assert energy_wasserstein(first, wide, order=1) == pytest.approx(
        math.sqrt(2 / math.pi), abs=0.02
    )


@pytest.mark.parametrize("order", [1, 2])
def test_weights_count_like_repeated_samples(order):
    first, second = normal(50, 3), normal(80, 4)
    repeats = torch.randint(0, 4, (50,), generator=torch.Generator().manual_seed(5))
    weighted = energy_wasserstein(first, second, repeats.double(), order=order)
    repeated = energy_wasserstein(first.repeat_interleave(repeats), second, order=order)
    assert weighted == pytest.approx(repeated, rel=1e-9)


def test_weighted_wasserstein_agrees_with_optimal_transport():
    ot = pytest.importorskip("ot")
    first, second = normal(40, 6), normal(60, 7, mean=0.5)
    first_weights, second_weights = (normal(n, 8).exp() for n in (40, 60))
    for order in (1, 2):
        exact = ot.wasserstein_1d(
            first.numpy(),
            second.numpy(),
            (first_weights / first_weights.sum()).numpy(),
            (second_weights / second_weights.sum()).numpy(),
            p=order,
        )
        ours = energy_wasserstein(first, second, first_weights, second_weights, order)
        assert ours == pytest.approx(float(exact) ** (1 / order), rel=1e-6)


def test_infinite_energies_count_unless_their_weight_is_zero():
    first, second = torch.tensor([0.0, 1.0, math.inf]), torch.tensor([0.0, 1.0])
    assert energy_wasserstein(first, second) == math.inf
    assert energy_wasserstein(first, second, torch.tensor([1.0, 1.0, 0.0])) == 0.0


def test_kish_ess_of_equal_and_of_single_weights():
    assert kish_ess(torch.full((7,), -300.0)) == pytest.approx(1.0)
    assert kish_ess(torch.tensor([0.0, -math.inf, -math.inf, -math.inf])) == pytest.approx(0.25)


def test_reverse_and_forward_ess_agree_with_the_closed_form():
    std = 1.2
    # ESS of N(0, 1) from N(0, s²): sqrt(2 s² - 1) / s².
    truth = math.sqrt(2 * std**2 - 1) / std**2
    from_q = log_normal_ratio(normal(200_000, 9, std=std), std)
    from_p = log_normal_ratio(normal(200_000, 10), std)
    assert kish_ess(from_q) == pytest.approx(truth, abs=0.005)
    assert forward_ess(from_p + 40.0) == pytest.approx(truth, abs=0.005)


def test_forward_ess_sees_the_mode_that_reverse_ess_misses():
    generator = torch.Generator().manual_seed(11)
    side = torch.where(torch.rand(10_000, generator=generator) < 0.5, -1.0, 1.0)
    target = 6.0 * side + normal(10_000, 12)

    def log_p_over_q(x):  # p has both modes, q = N(6, 1) only one
        both = torch.stack([-0.5 * (x - 6) ** 2, -0.5 * (x + 6) ** 2]).logsumexp(0)
        return both - math.log(2) + 0.5 * (x - 6) ** 2

    assert kish_ess(log_p_over_q(normal(10_000, 13, mean=6.0))) > 0.99
    assert forward_ess(log_p_over_q(target)) < 0.01


def test_upper_bound_lies_above_log_z_by_the_divergence_from_the_target():
    std, log_z = 1.5, 3.0
    values = log_z + log_normal_ratio(normal(50_000, 15), std)
    upper = eubo(values)
    forward_kl = 0.5 * (std**-2 - 1 + 2 * math.log(std))
    assert abs(upper.value - (log_z + forward_kl)) < 3.5 * upper.error
    copies = eubo(values.repeat_interleave(4), torch.arange(50_000).repeat_interleave(4))
    assert copies == pytest.approx(upper)


def test_pair_distances_of_a_right_triangle():
    triangle = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]])
    torch.testing.assert_close(pair_distances(triangle), torch.tensor([[3.0, 4.0, 5.0]]))
    assert short_pairs(triangle, cutoff=4.5).tolist() == [2]
    assert pair_distance_wasserstein(triangle, 2 * triangle) == pytest.approx(4.0, abs=1e-4)


def test_pair_distance_weights_belong_to_configurations():
    generator = torch.Generator().manual_seed(16)
    first = torch.randn(5, 4, 3, generator=generator)
    second = torch.randn(6, 4, 3, generator=generator)
    weighted = pair_distance_wasserstein(first, second, torch.tensor([1.0, 0.0, 2.0, 0.0, 0.0]))
    assert weighted == pytest.approx(pair_distance_wasserstein(first[[0, 2, 2]], second))


def test_pair_distances_in_cells_are_compared_as_exactly_as_sorted_ones():
    generator = torch.Generator().manual_seed(17)
    first = torch.randn(1700, 4, 3, generator=generator) + 50.0
    second = 1.1 * torch.randn(900, 4, 3, generator=generator)
    weights = torch.rand(1700, generator=generator, dtype=torch.float64)
    weights[5], first[5] = 0.0, math.inf
    finite = torch.where(torch.isfinite(first), first, 0.0)
    sorted_distance = energy_wasserstein(
        pair_distances(finite).flatten(),
        pair_distances(second).flatten(),
        weights.repeat_interleave(6),
        order=1,
    )
    found = pair_distance_wasserstein(first, second, weights)
    assert found == pytest.approx(sorted_distance, abs=2e-5)
    assert pair_distance_wasserstein(first, second) == math.inf


def test_pair_distances_of_degenerate_input():
    points = torch.zeros(3, 4, 3)
    assert pair_distance_wasserstein(points, points[:2]) == 0.0
    with pytest.raises(ValueError, match="none of 3 configurations has a positive weight"):
        pair_distance_wasserstein(points, points, torch.zeros(3))
    with pytest.raises(ValueError, match="1 atom has no pair distances"):
        pair_distance_wasserstein(points[:, :1], points[:, :1])


def test_radial_distribution_is_a_density_and_follows_the_weights():
    pair = torch.tensor([[[0.0, 0, 0], [0.5, 0, 0]], [[0.0, 0, 0], [1.5, 0, 0]]])
    edges = torch.tensor([0.0, 1.0, 3.0])
    assert radial_distribution(pair, edges).tolist() == [0.5, 0.25]
    assert radial_distribution(pair, edges, torch.tensor([3.0, 1.0])).tolist() == [0.75, 0.125]


def test_occupancy_counts_the_weight_of_each_number_of_short_pairs():
    square = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 3.0], [0.0, 3.0]])  # four short pairs
    line = torch.tensor([[0.0, 0.0], [3.0, 0.0], [6.0, 0.0], [9.0, 0.0]])  # three
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    occupancy = short_pair_occupancy(torch.stack([square, line]), weights)
    assert [occupancy[k].value for k in (2, 3, 4, 5)] == [0.0, 0.75, 0.25, 0.0]


def test_geometric_distance_ignores_motions_and_labels_and_sees_shape():
    pytest.importorskip("ot")
    generator = torch.Generator().manual_seed(17)
    shape = torch.randn(1, 5, 3, generator=generator)
    shape = shape - shape.mean(dim=1, keepdim=True)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    moved = (shape @ rotation)[:, torch.randperm(5, generator=generator)] + 2.0
    near = shape + 1e-2 * torch.randn(20, 5, 3, generator=generator)
    first = torch.cat([shape, 3 * shape])
    second = torch.cat([3 * shape, shape])
    assert geometric_wasserstein(first, second, (0,) * 5) < 1e-2
    assert geometric_wasserstein(shape, 1.1 * shape, (0,) * 5) == pytest.approx(
        0.1 * float(shape.norm()), rel=1e-4
    )
    assert geometric_wasserstein(near, shape, (0,) * 5) < 0.05
    assert geometric_wasserstein(shape, moved, tuple(range(5))) > 0.1


@pytest.mark.parametrize("n", [200, 1000])
def test_noise_floor_is_the_distance_of_independent_draws(n):
    floor = noise_floor(energy_wasserstein, normal(4000, 18), n, n_repeats=40)
    independent = torch.tensor(
        [energy_wasserstein(normal(n, 100 + k), normal(4000, 200 + k)) for k in range(40)]
    )
    error = math.hypot(floor.error, float(independent.std())) / math.sqrt(40)
    assert abs(floor.value - float(independent.mean())) < 4 * error


def test_noise_floor_of_groups_is_that_of_as_many_independent_samples():
    n_groups, copies = 60, 50
    labels = torch.randperm(n_groups * copies, generator=torch.Generator().manual_seed(3))
    groups = 7 + labels // copies
    values = normal(n_groups, 18)[groups - 7]
    n = 4000
    floor = noise_floor(energy_wasserstein, values, n, n_repeats=40, groups=groups)
    taken_as_independent = noise_floor(energy_wasserstein, values, n, n_repeats=40)
    independent = noise_floor(energy_wasserstein, normal(n_groups, 18), n, n_repeats=40)
    error = math.hypot(floor.error, independent.error) / math.sqrt(40)
    assert abs(floor.value - independent.value) < 4 * error
    assert floor.value > 3 * taken_as_independent.value


def test_geometric_distance_to_what_is_not_finite_is_infinite(generator):
    clouds = torch.randn(3, 5, 3, generator=generator)
    broken = clouds.clone()
    broken[1, 2, 0] = math.nan
    assert geometric_wasserstein(broken, clouds, (0,) * 5) == math.inf
