"""The battery passes right potentials and names the broken property of wrong ones."""

import pytest
import torch

from boltztilt.energy import CallablePotential, Potential
from boltztilt.potentials.lennard_jones import LennardJones
from boltztilt.testing import check_potential, jittered_lattice


class Broken(LennardJones):
    """A Lennard-Jones cluster whose energy and force are changed by a test."""

    def __init__(self, change_energy=None, change_force=None):
        super().__init__(4)
        self.change_energy = change_energy or (lambda energy, positions: energy)
        self.change_force = change_force or (lambda force, positions: force)

    def energy(self, positions):
        return self.change_energy(super().energy(positions), positions)

    def energy_and_force(self, positions):
        force = Potential.energy_and_force(self, positions)[1]
        return self.energy(positions).detach(), self.change_force(force, positions)


def test_every_property_of_a_right_potential_is_reported():
    names = {name.split()[0] for name in check_potential(LennardJones(4))}
    expected = {"force", "batch", "translation", "rotation", "permutation", "reflection"}
    assert names == expected


def test_a_system_brings_its_own_structure_and_species(aldp):
    deviations = check_potential(aldp)
    assert {name.split()[0] for name in deviations} >= {"force", "permutation", "reflection"}


def test_what_is_no_potential_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"got a function.*CallablePotential\(function, n_atoms\)"):
        check_potential(lambda positions: positions.sum((1, 2)))


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"change_force": lambda force, x: 1.001 * force}, ["force"]),
        ({"change_energy": lambda energy, x: energy + 0.1 * energy.mean()}, ["force", "batch"]),
        ({"change_energy": lambda energy, x: energy + 0.01 * x.sum((1, 2))}, ["translation"]),
        (
            {"change_energy": lambda energy, x: energy + x[:, :, 0].var(1)},
            ["rotation"],
        ),
        (
            {"change_energy": lambda energy, x: energy + (x[:, 0] - x[:, 1]).norm(dim=1)},
            ["permutation"],
        ),
        (
            {
                "change_energy": lambda energy, x: (
                    energy
                    + torch.linalg.det(x[:, 1:] - x[:, :1]).abs().clamp_max(0)
                    + torch.linalg.det(x[:, 1:] - x[:, :1])
                )
            },
            ["reflection"],
        ),
        ({"change_force": lambda force, x: force * float("nan")}, ["force", "batch"]),
    ],
)
def test_broken_property_is_named(changes, broken):
    with pytest.raises(AssertionError) as failure:
        check_potential(Broken(**changes))
    for name in broken:
        assert f"\n  {name}" in str(failure.value)


def test_lost_dtype_is_named():
    with pytest.raises(AssertionError, match=r"torch\.float64.*torch\.float32"):
        check_potential(Broken(change_energy=lambda energy, x: energy.double()))


def test_permutation_respects_the_species():
    """An energy that singles out the first atom passes once that atom is a species of its own."""

    def charged(positions):
        return LennardJones(3).energy(positions) + (positions[:, 0] - positions.mean(1)).norm(dim=1)

    potential = CallablePotential(charged, n_atoms=3, mirror_symmetric=True)
    check_potential(potential, species=(1, 0, 0))
    with pytest.raises(AssertionError, match="permutation"):
        check_potential(potential)


def test_infinite_energies_ask_for_other_positions():
    with pytest.raises(ValueError, match="pass `positions`"):
        check_potential(LennardJones(2), torch.zeros(1, 2, 3))


def test_jittered_lattice_is_centred_and_free_of_overlaps(generator):
    positions = jittered_lattice(13, 3, generator, n=50)
    assert positions.mean(1).abs().max() < 1e-12
    assert min(torch.pdist(one).min() for one in positions) > 0.5
