"""The views of a potential: any callable, counted, tilted, relative to a base."""

import math
import warnings

import pytest
import torch

from boltztilt.energy import CallablePotential, CountedPotential, TiltedPotential, relative_reward
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.potentials.lennard_jones import Convention, LennardJones
from boltztilt.sampling.base import Gaussian
from boltztilt.systems.system import System
from boltztilt.testing import check_potential, jittered_lattice


def spring(positions):
    return 1.5 * (positions - positions.mean(1, keepdim=True)).square().sum((1, 2))


def test_a_plain_function_is_a_potential(generator):
    potential = CallablePotential(spring, n_atoms=4, mirror_symmetric=True)
    check_potential(potential)
    positions = jittered_lattice(4, 3, generator)
    torch.testing.assert_close(potential.force(positions), Harmonic(4, 3.0).force(positions))


def test_reward_is_minus_the_energy(generator):
    positions = jittered_lattice(4, 3, generator)
    torch.testing.assert_close(Harmonic(4).reward(positions), -Harmonic(4).energy(positions))


def test_force_leaves_no_graph_and_works_without_gradients(generator):
    potential = CallablePotential(spring, n_atoms=4)
    with torch.no_grad():
        energy, force = potential.energy_and_force(jittered_lattice(4, 3, generator))
    assert not energy.requires_grad
    assert not force.requires_grad


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x: x.square().sum(2), ValueError, r"shape \(2, 4\).*expected.*\(2,\)"),
        (lambda x: x.sum(), ValueError, r"expected.*\(2,\)"),
        (lambda x: 3.0, TypeError, "torch.Tensor, got float"),
        (lambda x: x.sum((1, 2)).long(), TypeError, "floating-point"),
    ],
)
def test_function_with_wrong_output_is_refused(function, error, message):
    with pytest.raises(error, match=message):
        CallablePotential(function, n_atoms=4).energy(torch.zeros(2, 4, 3))


def test_energy_without_gradient_is_explained():
    detached = CallablePotential(lambda x: x.detach().sum((1, 2)), n_atoms=4)
    with pytest.raises(ValueError, match="cannot be differentiated"):
        detached.force(torch.zeros(2, 4, 3))


def test_evaluations_are_counted_per_configuration(generator):
    counted = CountedPotential(LennardJones(13))
    positions = jittered_lattice(13, 3, generator, n=6)
    counted.energy(positions)
    counted.energy_and_force(positions[:4])
    counted.force(positions[:1])
    assert (counted.n_energy, counted.n_force, counted.n_nonfinite) == (11, 5, 0)


def test_nonfinite_energies_are_counted_not_raised():
    counted = CountedPotential(LennardJones(2))
    positions = torch.zeros(3, 2, 3)
    positions[0, 0, 0] = 1.0
    assert torch.isfinite(counted.energy(positions)).tolist() == [True, False, False]
    assert counted.n_nonfinite == 2


def test_counting_changes_nothing(generator):
    positions = jittered_lattice(13, 3, generator)
    plain, counted = LennardJones(13), CountedPotential(LennardJones(13))
    for value, expected in zip(
        counted.energy_and_force(positions), plain.energy_and_force(positions), strict=True
    ):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
def test_tilted_harmonic_interpolates_the_stiffness(a, generator):
    """N(0, s^2) tilted towards stiffness k has stiffness (1 - a) / s^2 + a k."""
    std, stiffness = 1.5, 4.0
    base = Gaussian(5, 3, std)
    tilted = TiltedPotential(Harmonic(5, stiffness), base, a)
    positions = base.sample(7, generator, torch.float64)
    reference = Harmonic(5, (1 - a) / std**2 + a * stiffness)
    constant = (1 - a) * 0.5 * base.dof * math.log(2 * math.pi * std**2)
    energy, force = tilted.energy_and_force(positions)
    torch.testing.assert_close(energy, reference.energy(positions) + constant)
    torch.testing.assert_close(tilted.energy(positions), energy)
    torch.testing.assert_close(force, reference.force(positions))


@pytest.mark.parametrize("a", [0.0, 0.5, 1.0])
def test_tilted_lennard_jones_keeps_the_dtype(a, dtype, generator):
    tilted = TiltedPotential(LennardJones(13), Gaussian(13), a)
    energy, force = tilted.energy_and_force(jittered_lattice(13, 3, generator).to(dtype))
    assert energy.dtype == force.dtype == dtype


def test_potential_is_not_evaluated_at_the_base():
    """At a = 0 an overlap would give 0 * inf."""
    counted = CountedPotential(LennardJones(2))
    tilted = TiltedPotential(counted, Gaussian(2), 0.0)
    assert torch.isfinite(tilted.energy(torch.zeros(1, 2, 3))).all()
    assert torch.isfinite(tilted.force(torch.zeros(1, 2, 3))).all()
    assert counted.n_energy == 0


def test_tilt_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
        TiltedPotential(Harmonic(2), Gaussian(2), 1.5)


def test_tilted_density_is_the_base_times_the_exponential_of_the_reward(generator):
    base, potential, a = Gaussian(4), Harmonic(4, 3.0), 0.37
    positions = base.sample(5, generator, torch.float64)
    reward = relative_reward(potential.energy(positions), base, positions)
    expected = base.log_density(positions) + a * reward
    torch.testing.assert_close(-TiltedPotential(potential, base, a).energy(positions), expected)


def test_mean_exponential_reward_is_the_partition_function(generator):
    """log Z_1 = log of the configuration integral, for a spring stiffer than the base."""
    base, potential, n = Gaussian(3), Harmonic(3, 1.6), 50_000
    positions = base.sample(n, generator, torch.float64)
    weights = relative_reward(potential.energy(positions), base, positions).exp()
    z = (weights.mean() - math.exp(potential.log_z)) / (weights.std() / math.sqrt(n))
    assert abs(z) < 4


def test_trapped_cluster_reward_is_minus_the_pair_energy(generator):
    """With trap 1 and base standard deviation 1 the trap cancels against the base."""
    base = Gaussian(13)
    positions = jittered_lattice(13, 3, generator)
    reward = relative_reward(LennardJones(13).energy(positions), base, positions)
    pairs = LennardJones(13, Convention(2.0, 0.0)).energy(positions)
    constant = 0.5 * base.dof * math.log(2 * math.pi)
    torch.testing.assert_close(reward, -pairs + constant)


def test_an_energy_must_leave_its_positions_alone():
    def in_angstrom(positions):
        array = positions.detach().numpy()
        array *= 10.0
        return spring(positions)

    with pytest.raises(ValueError, match="changes the positions that it is given"):
        System("springs", in_angstrom, n_atoms=4)


def test_an_energy_that_is_bound_to_a_place_is_sampled_at_zero_mean_with_a_warning():
    def bound(positions):
        return (positions - 1).square().sum((1, 2))

    with pytest.warns(UserWarning, match="sampled only where their mean is zero; .*centered=False"):
        System("bound", bound, n_atoms=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        System("bound", CallablePotential(bound, 4, centered=False))
        System("free", spring, n_atoms=4)
