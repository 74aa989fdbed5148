"""The multistep solver: its weights, and the exact density of the map that it is."""

import math

import numpy as np
import pytest
import torch

from boltztilt.geometry import centring_matrix, remove_mean
from boltztilt.networks.unrolled import UnrolledField
from boltztilt.sampling.base import Gaussian
from boltztilt.sampling.flow import integrate, warped_grid
from boltztilt.sampling.multistep import (
    MappedField,
    adams_bashforth,
    multistep_flow,
    multistep_origin,
)

BASE = Gaussian(5, 3)


@pytest.fixture(scope="module")
def field() -> UnrolledField:
    """A small field in float64, moved off its start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = UnrolledField(2, n_hidden=8, n_channels=3)
        for parameter in field.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return field.double().requires_grad_(False)


def starts(n: int, seed: int = 0) -> torch.Tensor:
    return BASE.sample(n, torch.Generator().manual_seed(seed)).double()


def mapped(field: UnrolledField, starts_at_rest: bool = False) -> MappedField:
    return MappedField(field, field.velocity_and_jacobian, starts_at_rest)


def linear(rate: float) -> MappedField:
    """The field b = rate x."""

    def velocity(times, positions):
        return rate * positions

    def rates(times, positions):
        coordinates = positions[0].numel()
        jacobian = rate * torch.eye(coordinates, dtype=positions.dtype)
        return rate * positions, jacobian.expand(len(positions), -1, -1)

    return MappedField(velocity, rates)


@pytest.mark.parametrize(
    ("known", "expected"),
    [([1.0], [1]), ([0.0, 1.0], [3 / 2, -1 / 2]), ([-1.0, 0.0, 1.0], [23 / 12, -16 / 12, 5 / 12])],
)
def test_weights_of_equal_steps_are_those_of_the_textbook(known, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(adams_bashforth(known, 2.0), expected)


def test_weights_of_unequal_steps_integrate_parabolas():
    known, stop = [0.1, 0.25, 0.32], 0.5
    weights = adams_bashforth(known, stop)
    rates = torch.tensor([7 * t**2 - 3 * t + 2 for t in known[::-1]], dtype=torch.float64)
    integral = 7 * (stop**3 - 0.32**3) / 3 - 3 * (stop**2 - 0.32**2) / 2 + 2 * (stop - 0.32)
    assert (weights * rates).sum().item() == pytest.approx(integral, rel=1e-12)


def test_flow_between_equal_gaussians_is_exact_in_two_steps():
    """b = x (2t - 1) / (t² + (1-t)²): the frame of the solver moves with it."""

    def velocity(times, positions):
        scale = times.square() + (1 - times).square()
        return ((2 * times - 1) / scale)[:, None, None] * positions

    positions = starts(3)
    ends = multistep_flow(MappedField(velocity), positions, warped_grid(2)).positions
    torch.testing.assert_close(ends, positions, rtol=0, atol=1e-14)


def test_density_is_that_of_the_map(field):
    positions, times = starts(3), warped_grid(5)
    found = multistep_flow(mapped(field), positions, times)

    def coordinates_of_end(start):
        return multistep_flow(MappedField(field), start.unsqueeze(0), times).positions.flatten()

    averaging = torch.kron(torch.full((5, 5), 0.2), torch.eye(3)).double()
    centring = torch.eye(15).double() - averaging
    for start, change in zip(positions, found.log_density_change, strict=True):
        jacobian = torch.func.jacrev(coordinates_of_end)(start).flatten(1)
        on_subspace = centring @ jacobian @ centring + averaging
        torch.testing.assert_close(change, -torch.linalg.slogdet(on_subspace)[1])
    assert found.log_density_change.std() > 0.1


def test_structures_are_the_same_with_and_without_density(field):
    positions, times = starts(3), warped_grid(4)
    without = multistep_flow(MappedField(field), positions, times)
    found = multistep_flow(mapped(field), positions, times)
    torch.testing.assert_close(without.positions, found.positions)
    assert (without.log_density_change == 0).all()


def test_the_map_approaches_the_flow_with_the_second_power_of_the_step(field):
    positions = starts(8)
    exact = integrate(field, positions, warped_grid(80))
    errors = []
    for n_steps in (20, 40):
        found = multistep_flow(mapped(field), positions, warped_grid(n_steps))
        away = (found.positions - exact.positions).square().mean().sqrt()
        change = (found.log_density_change - exact.log_density_change).square().mean().sqrt()
        errors.append(torch.stack([away, change]))
    assert (torch.log2(errors[0] / errors[1]) > 1.6).all()
    assert (errors[1] < torch.tensor([0.005, 0.1])).all()


def test_origins_are_found_again(field):
    positions, times = starts(4, seed=1), warped_grid(6)
    ahead = multistep_flow(mapped(field), positions, times)
    back = multistep_origin(mapped(field), ahead.positions, times)
    torch.testing.assert_close(back.positions, positions, rtol=0, atol=1e-6)
    torch.testing.assert_close(back.log_density_change, ahead.log_density_change, rtol=0, atol=2e-3)


@pytest.mark.parametrize("with_density", [True, False])
def test_a_field_that_starts_at_rest_is_not_asked_there(with_density, field):
    """The first step then keeps x / s(t), and the map has the density of the steps it makes."""
    asked = []

    def velocity(times, positions):
        asked.append(times[0].item())
        return field(times, positions)

    def rates(times, positions):
        asked.append(times[0].item())
        return field.velocity_and_jacobian(times, positions)

    positions, times = starts(4, seed=1), warped_grid(6)
    rested = MappedField(velocity, rates if with_density else None, starts_at_rest=True)
    found = multistep_flow(rested, positions, times)
    assert asked == times[1:-1].tolist()
    first = multistep_flow(rested, positions, times[:2]).positions
    scale = torch.hypot(times[1], 1 - times[1])
    torch.testing.assert_close(first, scale * positions)
    if with_density:
        back = multistep_origin(mapped(field, starts_at_rest=True), found.positions, times)
        torch.testing.assert_close(back.positions, positions, rtol=0, atol=1e-6)
        change = found.log_density_change
        torch.testing.assert_close(back.log_density_change, change, rtol=0, atol=2e-3)
    away = (found.positions - multistep_flow(mapped(field), positions, times).positions).abs().max()
    assert away > 0.01


@pytest.mark.parametrize("length", [1e-3, 1e3])
def test_origins_are_found_in_any_unit_of_length(length, field):
    def velocity(times, positions):
        return length * field(times, positions / length)

    def rates(times, positions):
        velocity, jacobian = field.velocity_and_jacobian(times, positions / length)
        return length * velocity, jacobian

    positions, times = length * starts(4, seed=1), warped_grid(6)
    scaled = MappedField(velocity, rates, length=length)
    ahead = multistep_flow(scaled, positions, times)
    back = multistep_origin(scaled, ahead.positions, times)
    change = ahead.log_density_change
    torch.testing.assert_close(back.positions, positions, rtol=0, atol=1e-6 * length)
    torch.testing.assert_close(back.log_density_change, change, rtol=0, atol=2e-3)


def test_origins_belong_to_the_map_and_not_to_the_flow(field):
    ends, times = starts(4, seed=2), warped_grid(4)
    found = multistep_origin(mapped(field), ends, times)
    again = multistep_flow(mapped(field), found.positions, times)
    torch.testing.assert_close(again.positions, ends, rtol=0, atol=1e-6)
    flow = integrate(field, ends, warped_grid(40).flip(0), with_density=False)
    assert (flow.positions - found.positions).abs().max() > 0.01


def test_densities_of_many_atoms_are_right_with_several_threads(two_threads, generator):
    """Left alone, torch factorises batches of so large matrices wrongly, without an error."""
    positions = Gaussian(55, 3).sample(8, generator).double()
    centring = centring_matrix(positions)
    noise = torch.randn(centring.shape, generator=generator, dtype=torch.float64)
    matrix = centring @ noise @ centring / 13

    def rates(times, positions):
        moved = (positions.flatten(1) @ matrix.T).view_as(positions)
        return moved, matrix.expand(len(positions), -1, -1)

    field = MappedField(lambda times, positions: rates(times, positions)[0], rates)
    found = multistep_flow(field, positions, warped_grid(3))
    axes = torch.eye(165, dtype=torch.float64).view(165, 55, 3)
    map_of_axes = multistep_flow(MappedField(field.velocity), axes, warped_grid(3)).positions
    whole = centring @ map_of_axes.flatten(1) @ centring + torch.eye(165) - centring
    sign, logarithm = np.linalg.slogdet(whole.numpy())
    assert sign == 1
    assert abs(logarithm) > 1
    expected = torch.full((8,), -logarithm, dtype=torch.float64)
    torch.testing.assert_close(found.log_density_change, expected)


def test_ends_beyond_a_fold_get_an_infinite_density():
    """One step from x to x + 1 (b - x dlog s/dt) = -4 x turns an odd number of coordinates."""
    field = linear(-6.0)
    found = multistep_flow(field, starts(2)[:, :2, :1], warped_grid(1))
    assert torch.isposinf(found.log_density_change).all()
    even = multistep_flow(field, starts(2)[:, :3, :1], warped_grid(1))
    expected = torch.full((2,), -2 * math.log(4), dtype=torch.float64)
    torch.testing.assert_close(even.log_density_change, expected)


def test_an_end_that_the_map_does_not_reach_has_no_density():
    """The map of one step is tanh(3 x)."""

    def rates(times, positions):
        squeezed = torch.tanh(3 * positions)
        slope = 3 * (1 - squeezed.square()).flatten(1)
        return squeezed - 2 * positions, torch.diag_embed(slope - 2)

    def velocity(times, positions):
        return rates(times, positions)[0]

    ends = torch.tensor([[[2.0], [-2.0]], [[0.5], [-0.5]]], dtype=torch.float64)
    found = multistep_origin(MappedField(velocity, rates), ends, warped_grid(1))
    assert found.log_density_change[0].isnan()
    expected = math.atanh(0.5) / 3
    assert found.positions[1, 0].item() == pytest.approx(expected, abs=1e-6)
    slope = 3 * (1 - 0.25)
    assert found.log_density_change[1].item() == pytest.approx(-math.log(slope), abs=1e-3)


def test_an_end_that_is_reached_only_beyond_a_fold_has_no_density():
    """One step from x to x + 1 (b - x dlog s/dt) = -x / 2; `multistep_flow` gives it no weight."""
    ends = 0.1 * remove_mean(starts(2)[:, :2, :1])
    found = multistep_origin(linear(-2.5), ends, warped_grid(1))
    torch.testing.assert_close(found.positions, -2 * ends)
    assert found.log_density_change.isnan().all()
