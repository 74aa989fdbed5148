"""Centring, Kabsch rotations, permutations within species, and their alternation."""

import math
from itertools import pairwise

import pytest
import torch

from boltztilt.geometry import (
    align,
    optimal_permutation,
    optimal_rotation,
    pair_indices,
    permute,
    random_rotation,
    remove_mean,
)


def clouds(n_atoms: int, n_dims: int, generator: torch.Generator, n: int = 5) -> torch.Tensor:
    return remove_mean(torch.randn(n, n_atoms, n_dims, generator=generator, dtype=torch.float64))


def squared_distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first - second).square().sum((1, 2))


def test_centred_clouds_keep_their_shape(generator):
    positions = torch.randn(3, 4, 2, generator=generator)
    centred = remove_mean(positions)
    assert centred.mean(1).abs().max() < 1e-6
    torch.testing.assert_close(centred[:, 1] - centred[:, 0], positions[:, 1] - positions[:, 0])


def test_pairs_are_all_unordered_pairs_once():
    first, second = pair_indices(5)
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    assert len(first) == 10
    assert pairs == {(i, j) for j in range(5) for i in range(j)}


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("reflect", [False, True], ids=["rotated", "mirrored"])
def test_rotation_is_recovered(n_dims, reflect, generator):
    mobile = clouds(6, n_dims, generator)
    target = mobile @ random_rotation(n_dims, generator, reflect)
    rotation = optimal_rotation(mobile, target, allow_reflection=True)
    torch.testing.assert_close(mobile @ rotation, target)
    assert torch.allclose(
        torch.linalg.det(rotation), torch.tensor(-1.0 if reflect else 1.0).double()
    )


@pytest.mark.parametrize("n_dims", [2, 3])
def test_rotation_without_reflection_keeps_chirality(n_dims, generator):
    mobile = clouds(6, n_dims, generator)
    mirror = torch.ones(n_dims, dtype=torch.float64)
    mirror[0] = -1
    rotation = optimal_rotation(mobile, mobile * mirror, allow_reflection=False)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(5, dtype=torch.float64))
    identity = torch.eye(n_dims, dtype=torch.float64).expand(5, -1, -1)
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), identity)


def test_rotation_in_the_plane_is_the_best_of_all_angles(generator):
    """Unrelated clouds: no rotation fits, and half of the best ones would like to reflect."""
    mobile, target = clouds(5, 2, generator, n=8), clouds(5, 2, generator, n=8)
    found = squared_distance(mobile @ optimal_rotation(mobile, target, False), target)
    angles = torch.linspace(0, 2 * math.pi, 2001, dtype=torch.float64)
    turns = torch.stack([angles.cos(), angles.sin(), -angles.sin(), angles.cos()], -1)
    scan = torch.stack(
        [squared_distance(mobile @ turn, target) for turn in turns.view(-1, 2, 2)]
    ).amin(0)
    assert (found <= scan + 1e-12).all()
    torch.testing.assert_close(found, scan, atol=1e-4, rtol=0)


def test_permutation_is_recovered(generator):
    target = clouds(7, 3, generator)
    orders = torch.stack([torch.randperm(7, generator=generator) for _ in target])
    mobile = permute(target, orders)
    found = optimal_permutation(mobile, target, torch.zeros(7, dtype=torch.long))
    assert torch.equal(permute(mobile, found), target)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_permutation_stays_within_species(scale, generator):
    """Exchanging atoms 0 and 1 would fit better, but they are different."""
    species = torch.tensor([0, 1, 0, 1])
    target = scale * clouds(4, 3, generator)
    mobile = target[:, [1, 0, 2, 3]]
    found = optimal_permutation(mobile, target, species)
    assert torch.equal(species[found], species.expand(len(target), -1))
    free = optimal_permutation(mobile, target, torch.zeros(4, dtype=torch.long))
    assert torch.equal(permute(mobile, free), target)


@pytest.mark.parametrize("reflect", [False, True], ids=["rotated", "mirrored"])
def test_slightly_turned_and_permuted_clouds_are_aligned(reflect, generator):
    """Turned by a tenth of a radian at most: far less than the angles between the atoms."""
    target = 3 * clouds(5, 3, generator)
    noise = 0.05 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
    rotation = torch.matrix_exp(noise - noise.T)
    order = torch.randperm(5, generator=generator)
    species = torch.zeros(5, dtype=torch.long)
    mobile = (target @ rotation)[:, order]
    torch.testing.assert_close(align(mobile, target, species, reflect), target)


def test_alignment_never_moves_clouds_apart(generator):
    mobile, target = clouds(6, 3, generator, n=20), clouds(6, 3, generator, n=20)
    species = torch.tensor([0, 0, 0, 1, 1, 1])
    distances = [squared_distance(mobile, target)]
    for n_rounds in (1, 2, 4):
        aligned = align(mobile, target, species, n_rounds=n_rounds)
        distances.append(squared_distance(aligned, target))
    for before, after in pairwise(distances):
        assert (after <= before + 1e-9).all()
    assert (distances[1] < 0.9 * distances[0]).any()


@pytest.mark.parametrize(("reflect", "determinant"), [(False, 1.0), (True, -1.0)])
def test_random_rotation_is_orthogonal_with_the_asked_determinant(reflect, determinant, generator):
    rotation = random_rotation(3, generator, reflect)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
    assert torch.linalg.det(rotation).item() == pytest.approx(determinant)
