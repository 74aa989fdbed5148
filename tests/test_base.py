"""The Gaussian base: its law on the subspace and its normalised density."""

import math

import pytest
import torch

from boltztilt.sampling.base import Gaussian


@pytest.mark.parametrize(("centered", "dof"), [(True, 9), (False, 12)])
def test_dof_counts_the_dimensions_of_the_law(centered, dof):
    assert Gaussian(4, 3, centered=centered).dof == dof


@pytest.mark.parametrize("centered", [True, False])
def test_covariance_is_that_of_the_projected_noise(centered, generator):
    """std² (delta_ij - 1/n) between atoms of one axis when centred, every entry within 5 sigma."""
    n, base = 40_000, Gaussian(3, 2, std=0.7, centered=centered)
    draws = base.sample(n, generator, torch.float64).flatten(1)
    between_atoms = torch.eye(3) - (1 / 3 if centered else 0)
    exact = 0.49 * torch.kron(between_atoms, torch.eye(2)).double()
    covariance = draws.T @ draws / n
    error = ((exact.diag()[:, None] * exact.diag() + exact**2) / n).sqrt()
    assert ((covariance - exact) / error).abs().max() < 5


def test_centred_draws_have_no_mean(generator):
    assert Gaussian(13).sample(100, generator).mean(1).abs().max() < 1e-6


def test_draws_have_the_dtype_asked_for_and_follow_the_seed(dtype):
    base = Gaussian(3)
    first = base.sample(4, torch.Generator().manual_seed(7), dtype)
    assert first.dtype == dtype
    assert torch.equal(first, base.sample(4, torch.Generator().manual_seed(7), dtype))
    assert not torch.equal(first, base.sample(4, torch.Generator().manual_seed(8), dtype))


def test_density_integrates_to_one_on_the_plane():
    grid = torch.linspace(-6, 6, 241, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)[:, None]
    density = Gaussian(1, 2, std=0.8, centered=False).log_density(points).exp()
    assert (density.sum() * (grid[1] - grid[0]) ** 2).item() == pytest.approx(1, abs=1e-9)


def test_centred_density_integrates_to_one_on_the_subspace():
    """Two atoms on a line: the subspace is spanned by (1, -1) / sqrt(2)."""
    grid = torch.linspace(-6, 6, 241, dtype=torch.float64)
    points = torch.stack([grid, -grid], dim=1)[..., None] / math.sqrt(2)
    density = Gaussian(2, 1, std=0.8).log_density(points).exp()
    assert (density.sum() * (grid[1] - grid[0])).item() == pytest.approx(1, abs=1e-9)


def test_mean_log_density_is_minus_the_entropy(generator):
    """-dof/2 log(2 pi e std²), as a z-score."""
    base = Gaussian(5, 3, std=1.3)
    values = base.log_density(base.sample(20_000, generator))
    exact = -0.5 * base.dof * math.log(2 * math.pi * math.e * 1.3**2)
    error = math.sqrt(0.5 * base.dof / len(values))
    assert abs(values.mean().item() - exact) < 4 * error


def test_log_density_is_in_double_precision_whatever_the_positions(generator):
    assert Gaussian(3).log_density(Gaussian(3).sample(2, generator)).dtype == torch.float64


@pytest.mark.parametrize("std", [0.0, -1.0])
def test_widths_that_are_no_lengths_are_refused(std):
    with pytest.raises(ValueError, match="positive"):
        Gaussian(3, std=std)


def test_one_atom_cannot_be_centred():
    with pytest.raises(ValueError, match="at least 2 atoms"):
        Gaussian(1)
    assert Gaussian(1, centered=False).dof == 3
