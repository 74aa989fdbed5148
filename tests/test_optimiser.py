"""Optimisers: which parameters go where, restart to the bit, and steps that are not taken."""

import copy
import math

import pytest
import torch

from boltztilt.networks.perceptron import Perceptron
from boltztilt.tilt.optimiser import FieldOptimiser, hidden_matrices, update_average
from boltztilt.tilt.recipe import Recipe

KINDS = ["adamw"] + (["muon"] if hasattr(torch.optim, "Muon") else [])


def network(seed=0):
    torch.manual_seed(seed)
    return Perceptron(2, 2, n_hidden=8, n_layers=2)


def descend(field, optimiser, n_steps, learning_rate=0.01):
    generator = torch.Generator().manual_seed(1)
    for _ in range(n_steps):
        times, positions = torch.rand(64, generator=generator), torch.randn(64, 2, 2)
        loss = (field(times, positions) - positions.flip(1)).square().mean()
        loss.backward()
        optimiser.step(learning_rate)
    return float(loss.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained_once(kind):
    field = network()
    optimiser = FieldOptimiser(field, Recipe(optimiser=kind))
    trained = [
        p for part in optimiser.parts for group in part.param_groups for p in group["params"]
    ]
    assert sorted(map(id, trained)) == sorted(map(id, field.parameters()))
    before = copy.deepcopy(field)
    descend(field, optimiser, 3)  # the last layer starts at zero: the others move after it
    for old, new in zip(before.parameters(), field.parameters(), strict=True):
        assert not torch.equal(old, new)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_falls(kind):
    torch.manual_seed(2)
    field = network()
    optimiser = FieldOptimiser(field, Recipe(optimiser=kind))
    first = descend(field, optimiser, 1)
    assert descend(field, optimiser, 150) < 0.5 * first


def test_hidden_matrices_leave_out_vectors_and_the_features_of_time():
    field = network()
    matrices = {id(matrix) for matrix in hidden_matrices(field)}
    names = {name for name, parameter in field.named_parameters() if id(parameter) in matrices}
    assert names == {"layers.0.weight", "layers.2.weight", "layers.4.weight"}


@pytest.mark.parametrize("kind", KINDS)
def test_restored_state_continues_to_the_bit(kind):
    recipe, field = Recipe(optimiser=kind), network()
    optimiser = FieldOptimiser(field, recipe)
    torch.manual_seed(3)
    descend(field, optimiser, 3)
    other = copy.deepcopy(field)
    restored = FieldOptimiser(other, recipe)
    restored.restore(copy.deepcopy(optimiser.state()))
    for run in ((field, optimiser), (other, restored)):
        torch.manual_seed(4)
        descend(*run, 3)
    for left, right in zip(field.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_that_are_not_finite_take_no_step(kind):
    field = network()
    optimiser = FieldOptimiser(field, Recipe(optimiser=kind))
    before = copy.deepcopy(field.state_dict())
    (field(torch.rand(3), torch.randn(3, 2, 2)).sum() * math.nan).backward()
    assert optimiser.step(0.1) is False
    for name, value in field.state_dict().items():
        assert torch.equal(value, before[name])
    assert math.isfinite(descend(field, optimiser, 1))


def test_gradients_are_clipped_to_the_recipe():
    field = network()
    optimiser = FieldOptimiser(field, Recipe(optimiser="adamw", gradient_clip=0.5))
    seen = []
    optimiser.parts[0].step = lambda: seen.append(
        math.sqrt(sum(float(p.grad.square().sum()) for p in field.parameters()))
    )
    (1e4 * field(torch.rand(9), torch.randn(9, 2, 2)).square().sum()).backward()
    assert optimiser.step(0.1) is True
    assert seen[0] == pytest.approx(0.5, rel=1e-3)


def test_muon_without_a_torch_that_has_it_is_refused(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ImportError, match=r"torch >= 2.9.*optimiser = 'adamw'"):
        FieldOptimiser(network(), Recipe(optimiser="muon"))


def test_average_starts_quickly_and_then_follows_its_decay():
    field, average = network(1), network(2)
    start = copy.deepcopy(average)
    update_average(average, field, 0.999, 0)
    for mean, old, new in zip(
        average.parameters(), start.parameters(), field.parameters(), strict=True
    ):
        torch.testing.assert_close(mean, 0.1 * old + 0.9 * new)
    start = copy.deepcopy(average)
    update_average(average, field, 0.9, 100_000)
    for mean, old, new in zip(
        average.parameters(), start.parameters(), field.parameters(), strict=True
    ):
        torch.testing.assert_close(mean, 0.9 * old + 0.1 * new)
