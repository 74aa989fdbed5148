"""Pair closed forms and forces of the double well."""

import math

import pytest
import torch

from boltztilt.potentials.double_well import DoubleWell
from boltztilt.testing import check_potential, jittered_lattice


def pairs_at(distances: torch.Tensor) -> torch.Tensor:
    """Returns one pair of particles in the plane for every distance."""
    positions = torch.zeros(len(distances), 2, 2, dtype=torch.float64)
    positions[:, 1, 0] = distances
    return positions


def test_pair_minima_lie_at_the_closed_form_distances():
    offset = math.sqrt(4.0 / 1.8)
    minima = torch.tensor([4.0 - offset, 4.0 + offset], dtype=torch.float64)
    energy, force = DoubleWell(2).energy_and_force(pairs_at(minima))
    assert force.abs().max() < 1e-13
    torch.testing.assert_close(energy, torch.full_like(energy, -16.0 / 3.6))


def test_barrier_has_zero_height_at_the_centre():
    energy, force = DoubleWell(2).energy_and_force(pairs_at(torch.tensor([4.0])))
    assert energy.item() == 0.0
    assert force.abs().max().item() == 0.0


def test_minima_are_the_lowest_of_a_scan():
    energies = DoubleWell(2).energy(pairs_at(torch.linspace(0.0, 8.0, 8001)))
    assert energies.min().item() == pytest.approx(-16.0 / 3.6, abs=1e-5)


def test_dw4_sums_its_six_pairs(generator):
    positions = 4.0 * jittered_lattice(4, 2, generator)
    distances = torch.stack([torch.pdist(one) for one in positions])
    expected = (-4.0 * (distances - 4.0) ** 2 + 0.9 * (distances - 4.0) ** 4).sum(1)
    torch.testing.assert_close(DoubleWell(4).energy(positions), expected)


@pytest.mark.parametrize(("n_atoms", "n_dims"), [(4, 2), (5, 3)])
def test_passes_the_battery(n_atoms, n_dims, generator):
    positions = 3.0 * jittered_lattice(n_atoms, n_dims, generator)
    check_potential(DoubleWell(n_atoms, n_dims), positions)


def test_coincident_particles_feel_no_force_instead_of_nan():
    energy, force = DoubleWell(2).energy_and_force(pairs_at(torch.zeros(1)))
    assert energy.item() == pytest.approx(-4.0 * 16 + 0.9 * 256)
    assert (force == 0).all()


def test_unbound_quartic_is_refused():
    with pytest.raises(ValueError, match="quartic must be positive"):
        DoubleWell(quartic=0.0)
