"""The Gaussian base: its law on the subspace and its normalised density."""

import math

import pytest
import torch

from boltztilt.sampling.base import BondGaussian, Gaussian


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


# bases of bonds: a branched tree, and a ring with a tail
TREE = torch.tensor([[0, 1, 1, 3], [1, 2, 3, 4]])
RING = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 3]])
GRAPHS = pytest.mark.parametrize(("bonds", "n_atoms"), [(TREE, 5), (RING, 4)], ids=["tree", "ring"])


def bond_covariance(bonds, n_atoms, std):
    """Of the atoms on one axis: std² times the pseudo-inverse of the graph's Laplacian."""
    laplacian = torch.zeros(n_atoms, n_atoms, dtype=torch.float64)
    for first, second in bonds.T.tolist():
        edge = torch.zeros(n_atoms, dtype=torch.float64)
        edge[first], edge[second] = 1, -1
        laplacian += torch.outer(edge, edge)
    return std**2 * torch.linalg.pinv(laplacian)


@GRAPHS
def test_bond_density_is_that_of_a_dense_normal_law(bonds, n_atoms, generator):
    """In an orthonormal basis of the subspace without a mean."""
    base = BondGaussian(n_atoms, 3, 0.3, bonds=bonds)
    mean = torch.ones(n_atoms, 1, dtype=torch.float64) / math.sqrt(n_atoms)
    basis = torch.linalg.svd(mean).U[:, 1:]
    covariance = basis.T @ bond_covariance(bonds, n_atoms, 0.3) @ basis
    dense = torch.distributions.MultivariateNormal(torch.zeros(n_atoms - 1).double(), covariance)
    positions = 0.4 * torch.randn(20, n_atoms, 3, generator=generator, dtype=torch.float64)
    expected = dense.log_prob((basis.T @ positions).transpose(1, 2)).sum(1)
    torch.testing.assert_close(base.log_density(positions), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(base.log_density(positions + 0.7), expected)


@GRAPHS
def test_bond_covariance_is_that_of_the_graph(bonds, n_atoms, generator):
    """Every entry, of all axes, within 5 of its standard errors."""
    n, base = 40_000, BondGaussian(n_atoms, 2, 0.7, bonds=bonds)
    draws = base.sample(n, generator, torch.float64)
    assert draws.mean(1).abs().max() < 1e-12
    axes = torch.eye(2, dtype=torch.float64)
    exact = torch.kron(bond_covariance(bonds, n_atoms, 0.7), axes)
    covariance = draws.flatten(1).T @ draws.flatten(1) / n
    error = ((exact.diag()[:, None] * exact.diag() + exact**2) / n).sqrt()
    assert ((covariance - exact) / error).abs().max() < 5


def test_bonds_of_a_tree_are_independent_with_the_standard_deviation(generator):
    n, base = 20_000, BondGaussian(5, 3, 0.1, bonds=TREE)
    draws = base.sample(n, generator, torch.float64)
    vectors = (draws[:, TREE[0]] - draws[:, TREE[1]]).flatten(1)
    correlation = vectors.T @ vectors / (n * 0.1**2)
    deviation = (correlation - torch.eye(12)).abs() * math.sqrt(n)
    assert deviation.max() < 5 * math.sqrt(2)


@GRAPHS
def test_pair_spreads_are_those_of_samples(bonds, n_atoms, generator):
    n, base = 20_000, BondGaussian(n_atoms, 3, 0.2, bonds=bonds)
    draws = base.sample(n, generator, torch.float64)
    found = (draws[:, :, None] - draws[:, None]).square().mean((0, 3)).sqrt()
    spreads = base.pair_spreads().double()
    off = ~torch.eye(n_atoms, dtype=torch.bool)
    assert (found / spreads - 1)[off].abs().max() < 5 / math.sqrt(2 * 3 * n)
    assert spreads.diagonal().abs().max() < 1e-6


def test_pair_spreads_of_an_isotropic_base_are_those_of_samples(generator):
    base = Gaussian(4, 3, std=0.6)
    draws = base.sample(20_000, generator)
    found = (draws[:, 0] - draws[:, 3]).square().mean().sqrt().item()
    assert found == pytest.approx(base.pair_spreads()[0, 3].item(), rel=5 / math.sqrt(120_000))


@pytest.mark.parametrize("kind", ["bonds", "isotropic"])
def test_squared_norm_is_the_exponent_of_the_density(kind, dtype, generator):
    """And has the mean dof over draws of the base, within 4 standard errors."""
    base = BondGaussian(5, 3, 0.1, bonds=TREE) if kind == "bonds" else Gaussian(5, 3, 0.1)
    draws = base.sample(5000, generator, dtype)
    norm = base.squared_norm(draws)
    assert norm.dtype == dtype
    constant = base.log_density(draws) + norm.double() / 2
    assert (constant - constant[0]).abs().max() < (1e-4 if dtype == torch.float32 else 1e-10)
    error = math.sqrt(2 * base.dof / len(norm))
    assert abs(norm.double().mean().item() - base.dof) < 4 * error
    torch.testing.assert_close(base.squared_norm(3 * draws), 9 * norm)


def test_bonds_that_do_not_connect_the_atoms_are_refused():
    with pytest.raises(ValueError, match=r"bonds do not connect all atoms.*isotropic"):
        BondGaussian(5, 3, 0.1, bonds=TREE[:, :3])
    with pytest.raises(ValueError, match="bonds do not connect all atoms"):
        BondGaussian(2, 3, 0.1, bonds=torch.zeros(2, 0, dtype=torch.long))


def test_base_of_bonds_is_always_centred():
    with pytest.raises(ValueError, match="always centred"):
        BondGaussian(5, 3, 0.1, centered=False, bonds=TREE)
