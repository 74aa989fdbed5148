"""Couplings: shorter paths, and a base that stays Gaussian however the pairs are weighted."""

import math

import pytest
import torch

from boltztilt.geometry import remove_mean
from boltztilt.potentials.lennard_jones import LennardJones
from boltztilt.sampling.base import Gaussian
from boltztilt.tilt.coupling import COUPLINGS, aligned_coupling, independent_coupling

N_ATOMS = 5
SAME = torch.zeros(N_ATOMS, dtype=torch.long)
TWO_SPECIES = torch.tensor([0, 0, 1, 1, 1])
BASE = Gaussian(N_ATOMS)


def chiral_cloud():
    """A rigid configuration without mirror symmetry."""
    generator = torch.Generator().manual_seed(5)
    return remove_mean(torch.randn(1, N_ATOMS, 3, generator=generator))


def squared_distances(starts, ends):
    return (starts - ends).square().sum(dim=(1, 2))


@pytest.mark.parametrize("species", [SAME, TWO_SPECIES], ids=["one species", "two species"])
@pytest.mark.parametrize("mirror", [True, False])
def test_alignment_never_lengthens_a_path(species, mirror, generator):
    starts, ends = BASE.sample(500, generator), BASE.sample(500, generator)
    before = squared_distances(starts, ends)
    after = squared_distances(starts, aligned_coupling(starts, ends, species, mirror))
    assert (after <= before + 1e-4).all()
    assert after.mean() < 0.7 * before.mean()


def test_alignment_of_a_moved_copy_gives_the_copy_back(generator):
    # The move is small, so that the first assignment of atoms is already right.
    starts = BASE.sample(20, generator)
    rotation = torch.linalg.matrix_exp(0.05 * torch.tensor([[0, 1, -2], [-1, 0, 1], [2, -1, 0.0]]))
    ends = (starts @ rotation)[:, torch.randperm(N_ATOMS, generator=generator)]
    torch.testing.assert_close(
        aligned_coupling(starts, ends, SAME, False), starts, atol=1e-4, rtol=0
    )


def test_alignment_keeps_every_species(generator):
    starts, ends = BASE.sample(200, generator), BASE.sample(200, generator)
    aligned = aligned_coupling(starts, ends, TWO_SPECIES, True)
    for kind in (0, 1):
        chosen = kind == TWO_SPECIES
        radii = ends[:, chosen].norm(dim=-1).sort(dim=1).values
        kept = aligned[:, chosen].norm(dim=-1).sort(dim=1).values
        torch.testing.assert_close(kept, radii, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mirror", [True, False])
def test_reflection_only_where_the_energy_has_it(mirror, generator):
    starts = BASE.sample(300, generator)
    ends = chiral_cloud().expand(300, N_ATOMS, 3)
    labels = torch.arange(N_ATOMS)  # five species: no permutation, so handedness shows
    aligned = aligned_coupling(starts, ends, labels, mirror)
    handedness = torch.linalg.det(aligned[:, :3]) / torch.linalg.det(ends[:, :3])
    flipped = (handedness < 0).float().mean()
    if mirror:
        assert 0.3 < flipped < 0.7
    else:
        assert flipped == 0
    torch.testing.assert_close(handedness.abs(), torch.ones(300), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("mirror", [True, False])
def test_alignment_leaves_the_energy_alone(mirror, generator):
    potential = LennardJones(N_ATOMS)
    starts, ends = BASE.sample(200, generator), 1.5 * BASE.sample(200, generator)
    aligned = aligned_coupling(starts, ends, SAME, mirror)
    torch.testing.assert_close(
        potential.energy(aligned.double()), potential.energy(ends.double()), rtol=2e-3, atol=1e-3
    )


def test_reward_weights_leave_the_starts_of_aligned_pairs_gaussian(generator):
    n = 20_000
    starts, ends = BASE.sample(n, generator), BASE.sample(n, generator)
    aligned = aligned_coupling(starts, ends, SAME, True)
    radius = aligned.double().square().sum(dim=(1, 2))
    weights = torch.exp(-0.3 * radius)  # an invariant reward
    squares = starts.double().square()
    total = squares.sum(dim=(1, 2))
    moments = {  # functions of x0 with their means under the base
        "radius": (total, BASE.dof),
        "radius squared": (total.square(), BASE.dof**2 + 2 * BASE.dof),
        "one axis": (squares[..., 0].sum(dim=1), BASE.dof / 3),
        "one atom": (squares[:, 0].sum(dim=1), 3 * (1 - 1 / N_ATOMS)),
    }
    for name, (values, exact) in moments.items():
        excess = weights * (values - exact)
        z = float(excess.mean() / (excess.std() / math.sqrt(n)))
        assert abs(z) < 3.5, (name, z)
    # The joint law does depend on the pairing: otherwise there would be nothing to show.
    overlap = (starts * aligned).sum(dim=(1, 2))
    assert overlap.mean() > 0.5 * BASE.dof


def test_independent_coupling_changes_nothing(generator):
    starts, ends = BASE.sample(10, generator), BASE.sample(10, generator)
    assert independent_coupling(starts, ends, SAME, True) is ends
    assert set(COUPLINGS) == {"aligned", "independent"}
