"""Dimer closed forms and forces of the Lennard-Jones cluster."""

import math

import pytest
import torch

from boltztilt.potentials.lennard_jones import CONVENTIONS, Convention, LennardJones
from boltztilt.testing import check_potential, jittered_lattice

UNTRAPPED = {name: Convention(scale, 0.0) for name, (scale, _) in CONVENTIONS.items()}


def dimer(distance: float) -> torch.Tensor:
    positions = torch.zeros(1, 2, 3, dtype=torch.float64)
    positions[0, 1, 2] = distance
    return positions


def test_the_conventions_are_the_published_ones():
    assert CONVENTIONS == {"dem": (2.0, 1.0), "bgflow": (1.0, 1.0)}


@pytest.mark.parametrize("convention", UNTRAPPED)
def test_pair_minimum_lies_at_one(convention):
    potential = LennardJones(2, UNTRAPPED[convention])
    assert potential.force(dimer(1.0)).abs().max() < 1e-14
    assert potential.energy(dimer(0.999)) > potential.energy(dimer(1.0))
    assert potential.energy(dimer(1.001)) > potential.energy(dimer(1.0))


@pytest.mark.parametrize(("convention", "depth"), [("dem", 2.0), ("bgflow", 1.0)])
def test_pair_depth_is_the_pair_scale(convention, depth):
    assert LennardJones(2, UNTRAPPED[convention]).energy(dimer(1.0)).item() == -depth


@pytest.mark.parametrize("convention", UNTRAPPED)
def test_pair_energy_crosses_zero_at_sigma(convention):
    energy = LennardJones(2, UNTRAPPED[convention]).energy(dimer(2.0 ** (-1.0 / 6.0)))
    assert energy.abs() < 1e-13


@pytest.mark.parametrize(("convention", "depth"), [("dem", 2.0), ("bgflow", 1.0)])
def test_trapped_dimer_has_the_closed_form_energy_and_force(convention, depth):
    potential, r = LennardJones(2, convention), 1.3
    energy, force = potential.energy_and_force(dimer(r))
    assert energy.item() == pytest.approx(depth * (r**-12 - 2 * r**-6) + r**2 / 4, abs=1e-14)
    slope = depth * (-12 * r**-13 + 12 * r**-7) + r / 2
    assert force[0, 1, 2].item() == pytest.approx(-slope, abs=1e-13)


def test_trap_acts_around_the_centre_of_mass():
    potential = LennardJones(2, Convention(0.0, 1.0))
    assert potential.energy(dimer(2.0) + 5.0).item() == pytest.approx(1.0)


def test_forces_obey_newtons_third_law(generator):
    force = LennardJones(13).force(jittered_lattice(13, 3, generator))
    assert force.sum(1).abs().max() < 1e-12 * force.abs().max()


def test_icosahedron_has_the_known_minimum_energy():
    """The LJ-13 global minimum is -44.3268 well depths, https://www-wales.ch.cam.ac.uk/CCD.html."""
    golden = (1 + math.sqrt(5)) / 2
    shell = [(0, s, t * golden) for s in (1, -1) for t in (1, -1)]
    corners = [corner[k:] + corner[:k] for corner in shell for k in range(3)]
    icosahedron = torch.tensor([(0, 0, 0), *corners], dtype=torch.float64)
    icosahedron /= icosahedron[1].norm()
    scales = torch.linspace(0.94, 0.98, 4001, dtype=torch.float64)
    energies = LennardJones(13, Convention(1.0, 0.0)).energy(scales[:, None, None] * icosahedron)
    assert energies.min().item() == pytest.approx(-44.3268, abs=1e-4)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(("n_atoms", "n_dims"), [(13, 3), (5, 2)])
def test_passes_the_battery(convention, n_atoms, n_dims):
    check_potential(LennardJones(n_atoms, convention, n_dims))


def test_analytic_force_equals_autograd(dtype, generator):
    potential = LennardJones(13)
    positions = jittered_lattice(13, 3, generator).to(dtype)
    leaf = positions.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(potential.energy(leaf).sum(), leaf)
    energy, force = potential.energy_and_force(positions)
    torch.testing.assert_close(energy, potential.energy(positions))
    torch.testing.assert_close(force, -gradient)


def test_overlap_is_infinite_energy_and_zero_force_but_spares_the_rest_of_the_batch(dtype):
    apart = dimer(1.2).to(dtype)
    overlapping = torch.cat([torch.zeros_like(apart), apart])
    energy, force = LennardJones(2).energy_and_force(overlapping)
    assert energy[0] == math.inf
    assert (force[0] == 0).all()
    torch.testing.assert_close(force[1], LennardJones(2).force(apart)[0])


def test_unknown_convention_lists_the_known_ones():
    with pytest.raises(ValueError, match="dem, bgflow"):
        LennardJones(13, "lj")


def test_single_atom_is_refused():
    with pytest.raises(ValueError, match="at least 2 atoms"):
        LennardJones(1)
