"""The plain velocity field: its start and its divergence."""

import pytest
import torch

from boltztilt.networks.perceptron import Perceptron

TIMES = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)


def perceptron(moved: bool) -> Perceptron:
    torch.manual_seed(0)
    field = Perceptron(n_atoms=2, n_dims=3, n_hidden=8).double().requires_grad_(False)
    for parameter in field.parameters():
        parameter += 0.5 * moved * torch.randn_like(parameter)
    return field


def test_fresh_field_is_the_exact_one_between_equal_gaussians(generator):
    """b = x (2t - 1) / ((1 - t)^2 + t^2)."""
    positions = torch.randn(3, 2, 3, generator=generator, dtype=torch.float64)
    skip = torch.tensor([-1.0, -0.4 / 0.58, 1.0], dtype=torch.float64)
    expected = skip[:, None, None] * positions
    torch.testing.assert_close(perceptron(moved=False)(TIMES, positions), expected)


def test_divergence_equals_the_trace_of_the_jacobian(generator):
    field = perceptron(moved=True)
    positions = torch.randn(3, 2, 3, generator=generator, dtype=torch.float64)
    velocity, divergence = field.velocity_and_divergence(TIMES, positions)
    torch.testing.assert_close(velocity, field(TIMES, positions))
    for k in range(3):

        def single(flat, k=k):
            return field(TIMES[k : k + 1], flat.view(1, 2, 3)).flatten()

        jacobian = torch.autograd.functional.jacobian(single, positions[k].flatten())
        assert divergence[k].item() == pytest.approx(jacobian.trace().item(), rel=1e-9)
    skip_alone = perceptron(moved=False).velocity_and_divergence(TIMES, positions)[1]
    assert (divergence - skip_alone).abs().min() > 0.01


def test_centred_field_lives_on_the_subspace_of_zero_mean(generator):
    torch.manual_seed(1)
    field = Perceptron(n_atoms=3, n_dims=2, n_hidden=8, centered=True).double()
    torch.nn.init.normal_(field.layers[-1].weight)
    positions = torch.randn(3, 3, 2, generator=generator, dtype=torch.float64)
    velocity, divergence = field.velocity_and_divergence(TIMES, positions)
    torch.testing.assert_close(velocity.mean(1), torch.zeros(3, 2, dtype=torch.float64))
    shifted = field.velocity_and_divergence(TIMES, positions + 1.0)
    torch.testing.assert_close((velocity, divergence), shifted)


def test_times_matter_beyond_the_skip(generator):
    field = perceptron(moved=True)
    positions = torch.zeros(3, 2, 3, dtype=torch.float64)
    velocity = field(TIMES, positions)
    assert (velocity[0] - velocity[1]).abs().max() > 1e-3
