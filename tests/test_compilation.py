"""Compiling a network, and doing without where that is impossible."""

import shutil

import pytest
import torch

from boltztilt.networks.compilation import compiled
from boltztilt.networks.perceptron import Perceptron


def network() -> Perceptron:
    torch.manual_seed(0)
    field = Perceptron(n_atoms=2, n_dims=2, n_hidden=8)
    torch.nn.init.normal_(field.layers[-1].weight)
    return field


def test_network_is_used_as_it_is_unless_compiling_is_wanted():
    field = network()
    assert compiled(field, wanted=False) is field


def test_missing_compiler_warns_and_goes_on_without(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    field = network()
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler .* compile = false"):
        assert compiled(field, wanted=True) is field


@pytest.mark.slow
def test_compiled_network_gives_the_same_numbers(generator):
    if not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    field, times = network(), torch.linspace(0, 1, 4)
    positions = torch.randn(4, 2, 2, generator=generator)
    found = compiled(field, wanted=True)
    assert found is not field
    torch.testing.assert_close(found(times, positions), field(times, positions))
