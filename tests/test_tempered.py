"""Replica exchange of a molecule: exact moments, and ladders that continue where they stood."""

import math
from functools import partial

import pytest
import torch
from scores import z_score
from water import water

from boltztilt.analysis import tempered
from boltztilt.analysis.tempered import Tempered, temper
from boltztilt.sampling.estimate import Estimate


@pytest.fixture(scope="module")
def found():
    return temper(water(), n_rounds=40, seed=2)


def test_replicas_start_at_different_structures_of_the_target(found):
    starts = found.starts
    energies = water().potential.energy(starts.flatten(0, 1)).double().reshape(starts.shape[:2])
    assert energies.shape[1] > 3
    assert len(energies.unique()) == energies.numel()
    means = energies.mean(dim=1)
    error = float(means.std()) / math.sqrt(len(means))
    assert abs(z_score(Estimate(float(means.mean()), error), 1.5)) < 3.5


def test_tempered_round_trip(found, tmp_path):
    found.save(tmp_path / "tempering.pt")
    loaded = Tempered.load(tmp_path / "tempering.pt")
    assert torch.equal(loaded.starts, found.starts)
    for name in ("averages", "checks", "info", "system"):
        assert getattr(loaded, name) == getattr(found, name)


def test_rounds_are_made_up_to_whole_observations(found):
    assert found.info["tempering_rounds"] == 40
    assert temper(water(), n_rounds=10).info["tempering_rounds"] == 12


def test_interrupted_ladders_continue_to_the_same_result(found, tmp_path, monkeypatch):
    monkeypatch.setattr(tempered, "SAVED_EVERY", -1.0)
    path = tmp_path / "ladders.pt"

    def interrupt(done, total):
        assert total == 40
        if done == 24:
            raise KeyboardInterrupt

    run = partial(temper, water(), 40, seed=2, state_path=path)
    with pytest.raises(KeyboardInterrupt):
        run(progress=interrupt)
    seen = []
    resumed = run(progress=lambda done, total: seen.append(done), resume=True)
    assert seen == [28, 32, 36, 40]
    assert torch.equal(resumed.starts, found.starts)
    assert resumed.averages == found.averages
    with pytest.raises(ValueError, match="was made with seed = 2: resume with the same, or delete"):
        temper(water(), 40, seed=3, state_path=path, resume=True)
