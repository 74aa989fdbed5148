"""Mixed precision: what is rounded to bfloat16, and what is not."""

import dataclasses

import pytest
import torch

from boltztilt.networks.local_density import LocalDensityField
from boltztilt.networks.precision import in_precision
from boltztilt.potentials.lennard_jones import LennardJones
from boltztilt.systems.system import System
from boltztilt.testing import jittered_lattice
from boltztilt.tilt.recipe import Recipe
from boltztilt.tilt.run import TrainingRun

CPU = torch.device("cpu")
TIMES = torch.tensor([0.0, 0.3, 0.8, 0.97])
RECIPE = Recipe(
    network={"n_hidden": 16, "n_channels": 4},
    n_particles=16,
    rollout_steps=2,
    recentring_steps=2,
    batch_size=8,
    likelihood_batch=4,
    likelihood_solver_steps=2,
)


def local_density(**settings) -> LocalDensityField:
    """A small field moved off its start, where its learned part is zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = LocalDensityField(n_hidden=16, n_channels=4, **settings)
        for parameter in field.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return field


def lattice(generator) -> torch.Tensor:
    return 0.6 * jittered_lattice(6, 3, generator, n=len(TIMES)).float()


def run(precision: str) -> TrainingRun:
    """A run at its first rung whose fields have moved off their start."""
    system = System("cluster", LennardJones(6))
    started = TrainingRun(system, dataclasses.replace(RECIPE, precision=precision), 0, "cpu")
    weights = local_density().state_dict()
    for field in (started.field, started.average, started.old_field):
        field.load_state_dict(weights)
    return started


@pytest.mark.parametrize("cutoff", [None, 5.0])
def test_velocity_is_rounded_little_and_comes_in_float32(cutoff, generator):
    field, positions = local_density(cutoff=cutoff), lattice(generator)
    exact = field(TIMES, positions)
    rounded = in_precision(field, "bfloat16", CPU)(TIMES, positions)
    assert rounded.dtype == torch.float32
    assert 1e-4 < (rounded - exact).norm() / exact.norm() < 0.02


def test_float32_is_the_velocity_itself():
    field = local_density()
    assert in_precision(field, "float32", CPU) is field


def test_distances_are_not_rounded(generator):
    """Near x = 200 bfloat16 knows multiples of 1, more than the distances between neighbours."""
    positions = lattice(generator)
    velocity = in_precision(local_density(), "bfloat16", CPU)
    near, far = velocity(TIMES, positions), velocity(TIMES, positions + 200.0)
    assert (far - near).norm() / near.norm() < 0.02


def test_gradients_follow_those_of_float32(generator):
    positions, gradients = lattice(generator), []
    for precision in ("float32", "bfloat16"):
        field = local_density()
        in_precision(field, precision, CPU)(TIMES, positions).square().sum().backward()
        of_matrix = field.edge_hidden.weight.grad
        assert of_matrix is not None
        assert of_matrix.dtype == torch.float32
        gradients.append(of_matrix)
    assert (gradients[1] - gradients[0]).norm() / gradients[0].norm() < 0.05


def test_regressions_are_rounded_and_likelihoods_are_not():
    runs = run("float32"), run("bfloat16")
    rungs = [each._start_rung() for each in runs]
    torch.testing.assert_close(rungs[0].particles, rungs[1].particles, rtol=0, atol=0)
    for loss in ("tilting", "matching", "likelihood"):
        values = [
            [
                float(share.loss().detach())
                for share in getattr(each.losses, loss)(
                    rung if loss == "tilting" else rung.matching
                )
            ]
            for each, rung in zip(runs, rungs, strict=True)
        ]
        assert (values[0] == values[1]) == (loss == "likelihood"), loss
        assert values[1] == pytest.approx(values[0], rel=0.05), loss
