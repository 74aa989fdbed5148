"""Divergences of fields whose divergence is known: exact, and unbiased but noisy."""

import pytest
import torch

from boltztilt.sampling.divergence import brute_force_divergence, hutchinson_divergence

N_ATOMS, N_DIMS = 2, 3


def matrix() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(6, 6, generator=generator, dtype=torch.float64)


def linear(times: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """b = (1 + t) M x, of divergence (1 + t) tr M."""
    return (1 + times[:, None, None]) * (positions.flatten(1) @ matrix().T).view_as(positions)


def cubic(times: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """b = |x|² x, of divergence (d + 2) |x|²."""
    return positions.square().sum((1, 2), keepdim=True) * positions


def point(generator: torch.Generator, n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    positions = torch.randn(n, N_ATOMS, N_DIMS, generator=generator, dtype=torch.float64)
    return torch.linspace(0, 1, n, dtype=torch.float64), positions


def test_brute_force_is_exact_for_a_linear_field(generator):
    times, positions = point(generator)
    velocity, divergence = brute_force_divergence(linear, times, positions)
    torch.testing.assert_close(velocity, linear(times, positions))
    torch.testing.assert_close(divergence, (1 + times) * matrix().trace())


def test_brute_force_is_exact_for_a_cubic_field(generator):
    times, positions = point(generator)
    divergence = brute_force_divergence(cubic, times, positions)[1]
    torch.testing.assert_close(divergence, 8 * positions.square().sum((1, 2)))


def test_hutchinson_is_unbiased_but_noisy(generator):
    """Variance of one probe of signs: 2 (|S|² - sum_i S_ii²), S the symmetric part of M."""
    n = 20_000
    positions = torch.randn(1, N_ATOMS, N_DIMS, dtype=torch.float64, generator=generator)
    times, positions = torch.zeros(n, dtype=torch.float64), positions.repeat(n, 1, 1)
    velocity, estimates = hutchinson_divergence(linear, times, positions, generator)
    torch.testing.assert_close(velocity, linear(times, positions))
    symmetric = (matrix() + matrix().T) / 2
    variance = 2 * (symmetric.square().sum() - symmetric.diag().square().sum())
    z_score = (estimates.mean() - matrix().trace()) / (variance / n).sqrt()
    assert abs(z_score) < 4
    assert estimates.var().item() == pytest.approx(variance.item(), rel=0.05)
    assert variance > 10
