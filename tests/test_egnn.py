"""Symmetries and divergence of the equivariant graph network, in float64."""

import pytest
import torch

from boltztilt.geometry import random_rotation
from boltztilt.networks.egnn import EGNN
from boltztilt.testing import jittered_lattice

SPECIES = (0, 0, 1, 0, 1)
EXACT = 1e-9


def network() -> EGNN:
    """Returns a network with outputs of order one: the usual start moves nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = EGNN(SPECIES, n_hidden=16, n_layers=2).double()
        for layer in network.layers:
            torch.nn.init.normal_(layer.stretch[-1].weight)
    return network.requires_grad_(False)


def configurations(generator, n_dims: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    times = torch.tensor([0.0, 0.3, 0.8, 1.0], dtype=torch.float64)
    return times, jittered_lattice(len(SPECIES), n_dims, generator)


@pytest.mark.parametrize("reflect", [False, True], ids=["rotation", "reflection"])
@pytest.mark.parametrize("n_dims", [2, 3])
def test_velocity_turns_with_the_atoms(reflect, n_dims, generator):
    times, positions = configurations(generator, n_dims)
    rotation = random_rotation(n_dims, generator, reflect)
    turned = network()(times, positions @ rotation.T)
    torch.testing.assert_close(
        turned, network()(times, positions) @ rotation.T, atol=EXACT, rtol=EXACT
    )


def test_velocity_permutes_with_atoms_of_one_species(generator):
    times, positions = configurations(generator)
    order = [3, 0, 4, 1, 2]
    permuted = network()(times, positions[:, order])
    torch.testing.assert_close(
        permuted, network()(times, positions)[:, order], atol=EXACT, rtol=EXACT
    )


def test_velocity_tells_species_apart(generator):
    times, positions = configurations(generator)
    order = [2, 1, 0, 3, 4]
    exchanged = network()(times, positions[:, order])
    assert (exchanged - network()(times, positions)[:, order]).abs().max() > 1e-3


def test_velocity_ignores_translation_and_keeps_the_centre(generator):
    times, positions = configurations(generator)
    velocity = network()(times, positions)
    shifted = network()(times, positions + 1.7)
    torch.testing.assert_close(shifted, velocity, atol=EXACT, rtol=EXACT)
    assert velocity.mean(1).abs().max() < 1e-14


@pytest.mark.parametrize("n_dims", [2, 3])
def test_divergence_equals_the_trace_of_the_jacobian(n_dims, generator):
    times, positions = configurations(generator, n_dims)
    velocity, divergence = network().velocity_and_divergence(times, positions)
    for k in range(len(positions)):

        def single(flat, k=k):
            return network()(times[k : k + 1], flat.view(1, *positions.shape[1:])).flatten()

        jacobian = torch.autograd.functional.jacobian(single, positions[k].flatten())
        assert divergence[k].item() == pytest.approx(jacobian.trace().item(), rel=EXACT, abs=EXACT)
    assert divergence.abs().min() > 0.1
    torch.testing.assert_close(velocity, network()(times, positions))


def test_untrained_network_starts_near_the_field_between_equal_gaussians(generator):
    """There b = x (2t - 1) / ((1 - t)^2 + t^2): towards the mean, at rest, then outwards."""
    torch.manual_seed(0)
    field = EGNN(SPECIES, n_hidden=16, n_layers=2).double()
    positions = jittered_lattice(len(SPECIES), 3, generator, n=3)
    times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    expected = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)[:, None, None] * positions
    assert (field(times, positions) - expected).abs().max() < 0.01
