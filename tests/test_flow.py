"""Order of convergence, closed forms and round trips of the flow and its log-density."""

import math

import pytest
import torch
from torch import nn

from boltztilt.sampling.base import Gaussian
from boltztilt.sampling.flow import integrate, integrate_dopri5, warped_grid


class Linear(nn.Module):
    """b = M x, solved by the matrix exponential."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        matrix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
        self.matrix = nn.Parameter(matrix.to(dtype))

    def forward(self, times, positions):
        return (positions.flatten(1) @ self.matrix.T).view_as(positions)

    def velocity_and_divergence(self, times, positions):
        return self(times, positions), self.matrix.trace().expand(len(positions))

    def solution(self, positions, time=1.0):
        propagator = torch.matrix_exp(time * self.matrix.detach())
        return (positions.flatten(1) @ propagator.T).view_as(positions)


class Logistic(nn.Module):
    """b = 2t x (1 - x), solved by x(1) = x e / s with s = 1 + x (e - 1), dx(1)/dx = e / s²."""

    def forward(self, times, positions):
        return 2 * times[:, None, None] * positions * (1 - positions)

    def velocity_and_divergence(self, times, positions):
        divergence = 2 * times * (1 - 2 * positions).sum((1, 2))
        return self(times, positions), divergence

    def solution(self, positions):
        stretch = 1 + positions * (math.e - 1)
        return positions * math.e / stretch, -(1 - 2 * stretch.log()).sum((1, 2))


def starts(generator: torch.Generator, n: int = 5) -> torch.Tensor:
    return torch.rand(n, 2, 3, generator=generator, dtype=torch.float64)


def order(errors: list[float]) -> float:
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_positions_converge_with_fourth_order_to_the_matrix_exponential(power, generator):
    field, positions = Linear(), starts(generator)
    errors = []
    for n_steps in (20, 40):
        result = integrate(field, positions, warped_grid(n_steps, power))
        errors.append((result.positions - field.solution(positions)).abs().max().item())
    assert order(errors) == pytest.approx(4, abs=0.25)


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_log_density_converges_with_fourth_order(power, halves, generator):
    field, positions = Logistic(), starts(generator)
    moved, change = field.solution(positions)
    errors = []
    for n_steps in (10, 20):
        result = integrate(field, positions, warped_grid(n_steps, power), halves=halves)
        errors.append((result.log_density_change - change).abs().max().item())
    torch.testing.assert_close(result.positions, moved, atol=1e-4, rtol=0)
    assert order(errors) == pytest.approx(4, abs=0.3)


def test_log_density_of_a_linear_flow_is_that_of_the_gaussian_it_makes(generator):
    """N(0, I) becomes N(0, E E^T) with E = exp(M)."""
    field, base = Linear(), Gaussian(2, 3, centered=False)
    positions = base.sample(6, generator, torch.float64)
    end, change = integrate(field, positions, warped_grid(200))
    propagator = torch.matrix_exp(field.matrix.detach())
    law = torch.distributions.MultivariateNormal(
        torch.zeros(6, dtype=torch.float64), propagator @ propagator.T
    )
    expected = law.log_prob(end.flatten(1))
    torch.testing.assert_close(base.log_density(positions) + change, expected, atol=1e-5, rtol=0)


def test_following_the_flow_back_returns_to_the_start(generator):
    field, positions = Logistic(), starts(generator)
    there = integrate(field, positions, warped_grid(50))
    back = integrate(field, there.positions, warped_grid(50).flip(0))
    torch.testing.assert_close(back.positions, positions, atol=1e-7, rtol=0)
    round_trip = there.log_density_change + back.log_density_change
    assert round_trip.abs().max() < 1e-6
    assert there.log_density_change.abs().min() > 0.01


@pytest.mark.parametrize("with_density", [True, False])
def test_dopri5_solves_the_same_flow_forward_and_backward(with_density, generator):
    field, positions = Logistic(), starts(generator)
    moved, change = field.solution(positions)
    there = integrate_dopri5(field, positions, with_density=with_density)
    back = integrate_dopri5(field, there.positions, 1.0, 0.0, with_density)
    torch.testing.assert_close(there.positions, moved, atol=1e-4, rtol=0)
    torch.testing.assert_close(back.positions, positions, atol=1e-4, rtol=0)
    expected = change if with_density else torch.zeros_like(change)
    torch.testing.assert_close(there.log_density_change, expected, atol=1e-3, rtol=0)


def test_positions_keep_their_dtype_and_log_densities_are_double(dtype, generator):
    """Weights in single precision meet positions in single precision, in both solvers."""
    field, positions = Linear(dtype), starts(generator).to(dtype)
    fixed = integrate(field, positions, warped_grid(40))
    adaptive = integrate_dopri5(field, positions)
    for result in (fixed, adaptive):
        assert result.positions.dtype == dtype
        assert result.log_density_change.dtype == torch.float64
    torch.testing.assert_close(adaptive.positions, fixed.positions, atol=1e-3, rtol=1e-3)


def test_log_density_does_not_lose_digits_over_many_steps(generator):
    """A divergence of single precision summed over 1000 steps keeps ten digits."""
    field, positions = Linear(torch.float32), starts(generator).float()
    change = integrate(field, positions, warped_grid(1000)).log_density_change
    exact = -field.matrix.detach().trace().double().item()
    assert change.tolist() == pytest.approx([exact] * len(positions), rel=1e-10)


def test_halves_are_steps_of_half_the_size_with_as_many_divergences(generator):
    field, positions = Logistic(), starts(generator)
    calls = []
    exact = field.velocity_and_divergence
    field.velocity_and_divergence = lambda *inputs: calls.append(1) or exact(*inputs)
    times = torch.tensor([0.0, 0.5, 0.8, 1.0], dtype=torch.float64)
    finer = torch.tensor([0.0, 0.25, 0.5, 0.65, 0.8, 0.9, 1.0], dtype=torch.float64)
    halved = integrate(field, positions, times, halves=True)
    assert len(calls) == 7
    whole = integrate(field, positions, finer, with_density=False)
    torch.testing.assert_close(halved.positions, whole.positions, atol=1e-14, rtol=0)
    integrate(field, positions, times)
    assert len(calls) == 14


def test_positions_do_not_depend_on_the_density(generator):
    field, positions = Logistic(), starts(generator)
    with_density = integrate(field, positions, warped_grid(10))
    without = integrate(field, positions, warped_grid(10), with_density=False)
    assert torch.equal(with_density.positions, without.positions)
    assert without.log_density_change.count_nonzero() == 0


def test_warped_grid_spans_the_flow_and_is_finer_at_its_end():
    times = warped_grid(20)
    assert len(times) == 21
    assert (times[0].item(), times[-1].item()) == (0.0, 1.0)
    steps = times.diff()
    assert (steps.diff() < 0).all()
    assert (steps > 0).all()
    assert times[10].item() == pytest.approx(1 - 0.5**2)
    torch.testing.assert_close(warped_grid(4, power=1.0), torch.arange(5).double() / 4)


@pytest.mark.parametrize("n_steps", [0, -3])
def test_flow_without_steps_is_refused(n_steps):
    with pytest.raises(ValueError, match="at least one step"):
        warped_grid(n_steps)
