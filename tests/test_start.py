"""Training that begins with the field of another sampler."""

import math
import shutil

import pytest
import torch
from small_runs import SMALL, assert_same, finish, result

from boltztilt.checkpoint import load_weights
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.systems.system import System
from boltztilt.tilt.training import train

NETWORK = {"kind": "local_density", "n_hidden": 4, "n_channels": 2, "max_degree": 1}
FROM_START = {**SMALL, "network": NETWORK, "steps_per_rung": 0, "polish_rollout_every": 0}
LARGE = System("large", Harmonic(5, 3.0))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run folder with a field of three atoms."""
    folder = tmp_path_factory.mktemp("small")
    train(System("small", Harmonic(3)), folder, **{**SMALL, "network": NETWORK})
    return folder


def test_polishing_begins_with_the_field_of_another_sampler(small):
    """A field of clusters does not depend on their size; it stays as it is at a rate of zero."""
    rates = {"learning_rate": 1e-12, "likelihood_rate": 1e-12}
    seen = []
    made = train(LARGE, start_from=str(small), progress=seen.append, **FROM_START, **rates)
    for status in seen:  # no update yet, no loss
        waiting = status.stage == "ladder" or (status.stage, status.step) == ("polish", 0)
        assert math.isnan(status.loss) == waiting
    assert all(0 <= status.fraction_done <= 1 for status in seen)
    assert seen[-1].fraction_done == 1.0
    assert made.metadata["a"] == 1.0
    assert made.metadata["n_rungs"] > 1
    assert made.metadata["n_updates"] == SMALL["polish_steps"] + SMALL["likelihood_steps"]
    assert made.metadata["start"]["system"] == "small"
    for name, weight in load_weights(small / "weights.safetensors")[0].items():
        torch.testing.assert_close(made.field.state_dict()[name], weight)


def test_local_density_becomes_the_first_layer_of_an_unrolled_field(small):
    rates = {"learning_rate": 1e-12, "likelihood_steps": 0}
    settings = {**FROM_START, **rates, "network": {**NETWORK, "kind": "unrolled", "n_layers": 2}}
    made = train(LARGE, start_from=str(small), **settings)
    for name, weight in load_weights(small / "weights.safetensors")[0].items():
        torch.testing.assert_close(made.field.state_dict()[f"layers.0.{name}"], weight)


def test_unrolled_field_gets_further_layers(tmp_path):
    """They learn with the others; a start with more layers than the field is refused."""
    deep = {**FROM_START, "likelihood_steps": 0, "network": {**NETWORK, "kind": "unrolled"}}
    first = {**deep, "steps_per_rung": 1, "network": {**deep["network"], "n_layers": 2}}
    two, three = tmp_path / "two", tmp_path / "three"
    train(System("small", Harmonic(3)), two, **first)
    made = train(LARGE, three, start_from=str(two), learning_rate=1e-12, **deep)
    state = made.field.state_dict()
    for name, weight in load_weights(two / "weights.safetensors")[0].items():
        torch.testing.assert_close(state[name][: len(weight)], weight)
    assert sum(name.startswith("layers.2.") for name in state)
    some = {**deep, "network": {**deep["network"], "n_throughout": 2}}
    train(LARGE, start_from=str(two), **some)
    with pytest.raises(ValueError, match=r"has a network with n_throughout = 0; set the same"):
        train(LARGE, start_from=str(three), **some)
    with pytest.raises(ValueError, match=r"has a network with n_layers = 3; set the same"):
        train(LARGE, start_from=str(three), **{**first, "steps_per_rung": 0})


def test_start_is_kept_with_the_run(small, tmp_path):
    """A run that was interrupted on the ladder needs the folder it starts from no more."""
    start, whole, parts = (tmp_path / name for name in ("start", "whole", "parts"))
    shutil.copytree(small, start)
    train(LARGE, whole, start_from=str(start), **FROM_START)
    train(LARGE, parts, max_minutes=0.0, start_from=str(start), **FROM_START)
    shutil.rmtree(start)
    finish(LARGE, parts)
    assert_same(result(parts), result(whole))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": {**NETWORK, "reach": 9.0}}, r"has a network with reach = 6\.0; set the same"),
        ({"polish_rollout_every": 5}, "set polish_rollout_every = 0, not 5"),
        ({"steps_per_rung": 3}, "set steps_per_rung = 0, not 3"),
    ],
)
def test_start_that_does_not_fit_is_refused(changes, words, small):
    with pytest.raises(ValueError, match=words):
        train(LARGE, start_from=str(small), **{**FROM_START, **changes})


def test_start_that_did_not_reach_the_target_is_refused(tmp_path):
    settings = {**SMALL, "network": NETWORK}
    train(System("small", Harmonic(3, 3.0)), tmp_path, max_minutes=0.0, **settings)
    with pytest.raises(ValueError, match="finish its training first"):
        train(LARGE, start_from=str(tmp_path), **FROM_START)
