"""What a training run does on its way: every objective, energies that are lost, stray losses."""

import csv
import math
from itertools import pairwise

import pytest
import torch
from small_runs import SMALL, cluster, result

from boltztilt.console import training_words
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.potentials.lennard_jones import LennardJones
from boltztilt.systems.system import System
from boltztilt.tilt.recipe import RECENTRINGS, Recipe
from boltztilt.tilt.run import TrainingRun
from boltztilt.tilt.training import train


@pytest.mark.parametrize("recentring", RECENTRINGS)
@pytest.mark.parametrize("objective", ["itm", "wfm", "etm"])
def test_every_objective_and_recentring_runs(objective, recentring):
    settings = {**SMALL, "polish_steps": 1, "objective": objective, "recentring": recentring}
    sampler = train(cluster(), **settings)
    assert sampler.metadata["finished"]
    assert sampler.metadata["n_skipped_updates"] == 0
    assert math.isfinite(sampler.metadata["log_z_ladder"])


@pytest.mark.parametrize("kind", ["perceptron", "unrolled"])
def test_exact_weights_run(kind):
    network = SMALL["network"] | {"kind": kind}
    settings = {**SMALL, "network": network, "polish_steps": 1}
    sampler = train(cluster(), objective="wfm", exact_weights=True, **settings)
    assert sampler.metadata["finished"]


@pytest.mark.parametrize("kind", ["matching", "likelihood"])
def test_deeper_fields_take_fewer_structures_at_once(kind, monkeypatch):
    """What autograd keeps grows with the layers, and so do the shares of a batch."""
    monkeypatch.setattr("boltztilt.hardware.MEMORY", 1e6 if kind == "matching" else 2e7)
    sizes = []
    for n_layers in (2, 4):
        network = {"kind": "unrolled", "n_layers": n_layers, "n_hidden": 4}
        recipe = Recipe.from_mapping({**SMALL, "network": network, "likelihood_batch": 16})
        losses = TrainingRun(cluster(), recipe, 0, "cpu").losses
        sizes.append(getattr(losses, kind)(torch.randn(16, 3, 2))[0].factor)
    assert sizes[0] == pytest.approx(2 * sizes[1])


@pytest.mark.parametrize("forces", [False, True], ids=["total", "along_paths"])
def test_gradients_of_a_batch_in_parts_are_those_of_the_whole(forces, monkeypatch):
    """Updates differ by rounding only when memory allows 3 structures at once."""
    settings = {**SMALL, "polish_steps": 2, "batch_size": 12, "likelihood_steps": 2}
    settings |= {"likelihood_forces": forces, "likelihood_batch": 8}
    whole = train(cluster(), seed=3, **settings).field.state_dict()
    monkeypatch.setattr("boltztilt.hardware.PAIRS_AT_ONCE", 9)
    parts = train(cluster(), seed=3, **settings).field.state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-3, rtol=1e-3)


def test_explicit_tilt_matching_is_refused_on_a_singular_core():
    system = System("argon", LennardJones(4))
    settings = {**SMALL, "objective": "etm", "n_particles": 512}
    with pytest.raises(ValueError, match=r"'etm'.*singular core"):
        train(system, **settings)


class Patchy(Harmonic):
    """A harmonic well whose energy is NaN, and its force too, in a thin slab."""

    def energy(self, positions):
        lost = (positions[:, 0, 0] - 0.3).abs() < 0.05
        return torch.where(lost, math.nan, super().energy(positions))

    def energy_and_force(self, positions):
        energy, force = super().energy_and_force(positions)
        lost = torch.isnan(self.energy(positions))
        return torch.where(lost, math.nan, energy), torch.where(
            lost[:, None, None], math.nan, force
        )


@pytest.mark.parametrize("recentring", ["mala", "none"])
def test_nan_energies_do_not_stop_a_run(recentring, tmp_path):
    system = System("patchy", Patchy(3, 3.0, 2))
    sampler = train(system, out=tmp_path, recentring=recentring, **SMALL)
    assert sampler.metadata["finished"]
    assert sampler.metadata["n_nonfinite"] > 0
    assert sampler.metadata["n_skipped_updates"] == 0
    assert all(torch.isfinite(tensor).all() for tensor in result(tmp_path)[0].values())
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(math.isfinite(float(row["mean_energy"])) for row in rows)
    assert all(math.isfinite(float(row["loss"])) for row in rows)


def test_energies_that_are_all_nan_are_an_error():
    system = System("broken", lambda x: x.sum(dim=(1, 2)) * math.nan, n_atoms=3, n_dims=2)
    with pytest.raises(ValueError, match="0 of 64 rewards are finite"):
        train(system, **SMALL)


def test_a_stray_loss_is_counted_and_does_not_hide_the_others(monkeypatch):
    values = iter([2.0] * 20 + [1e12] + [2.0] * 1000)
    monkeypatch.setattr("boltztilt.tilt.run.add_gradients", lambda *arguments: next(values))
    run = TrainingRun(cluster(), Recipe.from_mapping(SMALL), 0, "cpu")
    for parameter in run.optimiser.parameters:
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(21):
        run._descend([], 0.0)
    status = run.status()
    assert status.n_strays == 1
    assert status.loss == pytest.approx(2.0 * (0.98 + 0.02 * 10))
    assert "stray losses 1" in training_words(status)
    assert run.sampler().metadata["n_stray_updates"] == 1


def test_progress_tells_where_the_run_stands():
    seen = []
    train(cluster(), progress=seen.append, **SMALL)
    assert list(dict.fromkeys(status.stage for status in seen)) == [
        "ladder",
        "polish",
        "likelihood",
    ]
    ladder = [status for status in seen if status.stage == "ladder"]
    assert all(a.a <= b.a for a, b in pairwise(ladder))
    assert all(0 <= status.fraction_done <= 1 for status in seen)
    assert seen[-1].fraction_done == 1.0
    assert all(a.fraction_done <= b.fraction_done for a, b in pairwise(seen[-10:]))
    assert seen[-1].step == seen[-1].n_steps == SMALL["likelihood_steps"]
    assert all(a.seconds <= b.seconds for a, b in pairwise(seen))
