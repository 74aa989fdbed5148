"""Numbers that users give: numpy's are as good as Python's, others are explained."""

import jaxtyping
import numpy as np
import pytest
import torch

from boltztilt.sampling.sampler import Sampler
from boltztilt.systems.system import System
from boltztilt.tilt.annealing import anneal
from boltztilt.whole_numbers import seeded, whole_number


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_whole_numbers_of_other_packages_are_those_of_python(value):
    number = whole_number("n", value)
    assert number == 3
    assert type(number) is int


@pytest.mark.parametrize("value", [3.0, "3", None, np.float32(3)])
def test_what_is_no_whole_number_is_refused_by_name(value):
    with pytest.raises(TypeError, match=r"n is .*; give a whole number"):
        whole_number("n", value)


def test_too_small_numbers_are_refused():
    with pytest.raises(ValueError, match="n is 0; give at least 1"):
        whole_number("n", 0)
    with pytest.raises(ValueError, match="seed is -1; give at least 0"):
        seeded(-1)
    assert seeded(0) == 0


def test_numbers_from_numpy_go_all_the_way(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # annotations say int
    species = np.array([0, 1, 0])
    system = System(
        "springs",
        lambda x: (x[:, 0] - x[:, 1]).square().sum(1) + (x[:, 0] - x[:, 2]).square().sum(1),
        n_atoms=np.int64(3),
        species=species,
    )
    assert system.species == (0, 1, 0)
    one, two = np.int64(1), np.int64(2)
    drawn = anneal(system, np.int64(8), seed=one, n_per_group=two, n_steps=one)
    assert torch.equal(
        drawn.positions, anneal(system, 8, seed=1, n_per_group=2, n_steps=1).positions
    )
    sampler = Sampler.load("dw4")
    drawn = sampler.sample(two, seed=one)
    assert torch.equal(drawn.positions, sampler.sample(2, seed=1).positions)
    assert len(drawn.resample(two, seed=one).refine(two, seed=one)) == 2
    with pytest.raises(TypeError, match=r"n is 10\.0; give a whole number"):
        sampler.sample(10.0)
    with pytest.raises(TypeError, match="seed is None"):
        sampler.sample(2, seed=None)
