"""Closed forms of the harmonic wells against samples and quadrature."""

import math

import pytest
import torch

from boltztilt.potentials.harmonic import Harmonic
from boltztilt.testing import check_potential

WELLS = [
    Harmonic(5, 2.5),
    Harmonic(4, 0.7, n_dims=2),
    Harmonic(2, 3.0, n_dims=1, centered=False),
]


@pytest.mark.parametrize("well", WELLS)
def test_passes_the_battery(well):
    check_potential(well)


@pytest.mark.parametrize("well", WELLS)
def test_energy_obeys_equipartition(well, generator):
    n = 20_000
    energies = well.energy(well.sample(n, generator, torch.float64))
    mean_error = math.sqrt(well.dof / 2 / n)
    assert abs(energies.mean() - well.dof / 2) < 4 * mean_error
    variance_error = well.dof / 2 * math.sqrt((2 + 12 / well.dof) / n)
    assert abs(energies.var() - well.dof / 2) < 4 * variance_error


def test_log_z_equals_quadrature():
    """Two particles on a line, uncentered: the integral over the plane by a fine grid."""
    well = Harmonic(2, 3.0, n_dims=1, centered=False)
    axis = torch.linspace(-6.0, 6.0, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)[:, :, None]
    cell = (axis[1] - axis[0]) ** 2
    assert (-well.energy(grid)).exp().sum().mul(cell).log().item() == pytest.approx(well.log_z)


def test_log_z_of_a_centered_pair_equals_quadrature_over_its_separation():
    """On the line x1 = -x2 = u / sqrt(2), u measures length along the zero-mean subspace."""
    well = Harmonic(2, 3.0, n_dims=1)
    u = torch.linspace(-6.0, 6.0, 2001, dtype=torch.float64)
    line = torch.stack([u, -u], dim=1)[:, :, None] / math.sqrt(2.0)
    assert (-well.energy(line)).exp().sum().mul(u[1] - u[0]).log().item() == pytest.approx(
        well.log_z
    )


def test_nonpositive_stiffness_is_refused():
    with pytest.raises(ValueError, match="stiffness must be positive"):
        Harmonic(3, 0.0)
