"""Compiling a network, and doing without where that is impossible."""

import copy
import os
import shutil
import subprocess
import sys

import pytest
import torch

from boltztilt.networks.compilation import Compiled, compiled
from boltztilt.networks.egnn import EGNN
from boltztilt.networks.local_density import LocalDensityField
from boltztilt.networks.perceptron import Perceptron
from boltztilt.networks.unrolled import UnrolledField
from boltztilt.sampling.transport import FieldRates


def network() -> Perceptron:
    torch.manual_seed(0)
    field = Perceptron(n_atoms=2, n_dims=2, n_hidden=8)
    torch.nn.init.normal_(field.layers[-1].weight)
    return field


def test_network_is_used_as_it_is_unless_compiling_is_wanted():
    field = network()
    assert compiled(field, field, wanted=False) is field


def test_networks_with_a_cutoff_are_used_as_they_are():
    """Their shapes change with every batch."""
    for field in (LocalDensityField(n_hidden=8, cutoff=2.0), UnrolledField(2, cutoff=2.0)):
        rates = FieldRates.of(field, wanted=True)
        assert rates.velocity is field
        assert rates.velocity_and_divergence == field.velocity_and_divergence


def test_divergences_by_products_are_not_compiled():
    for field in (network(), EGNN([0, 0], 8, 1)):
        rates = FieldRates.of(field, wanted=True)
        assert isinstance(rates.velocity, Compiled)
        assert rates.velocity_and_divergence == field.velocity_and_divergence


def test_compiled_functions_can_be_copied():
    made = Compiled(torch.sin, torch.sin, torch.device("cpu"))
    assert copy.deepcopy(made)(torch.zeros(1)) == 0


def test_missing_compiler_warns_and_goes_on_without(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    field = network()
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler .* compile = false"):
        assert compiled(field, field, wanted=True) is field


# shapes in signatures are enforced in this process, which torch.compile cannot trace
COMPARISON = """
import torch
from boltztilt.networks.compilation import compiled
from boltztilt.networks.local_density import LocalDensityField

torch.manual_seed(0)
field = LocalDensityField(n_hidden=8, n_channels=3, max_degree=2).requires_grad_(False)
for parameter in field.parameters():
    parameter += 0.2 * torch.randn(parameter.shape)
times, positions = torch.tensor([0.0, 0.5, 0.9]), torch.randn(3, 5, 3)
velocity, divergence = field.velocity_and_divergence(times, positions)
found = compiled(field, field, wanted=True)
assert found is not field
torch.testing.assert_close(found(times, positions), velocity, atol=1e-4, rtol=1e-4)
both = compiled(field.velocity_and_divergence, field, wanted=True)(times, positions)
torch.testing.assert_close(both, (velocity, divergence), atol=1e-3, rtol=1e-4)
assert divergence.abs().min() > 0.1
"""


# two functions whose first calls and backward passes would meet in threads
THREADS = """
import torch
from functools import partial
from boltztilt.networks.compilation import compiled
from boltztilt.networks.local_density import LocalDensityField
from boltztilt.parallel import in_threads

torch.set_num_threads(3)
torch.manual_seed(0)
field = LocalDensityField(n_hidden=8, n_channels=3, max_degree=1)
torch.nn.init.normal_(field.output)
velocity = compiled(field, field, wanted=True)
rates = compiled(field.velocity_and_divergence, field, wanted=True)
parameters = list(field.parameters())

times, positions = torch.tensor([0.1, 0.8]), torch.randn(2, 4, 3)

def gradient(velocity, rates, with_density):
    values = rates(times, positions)[1] if with_density else velocity(times, positions)
    with torch.no_grad():
        velocity(times, positions)
    return torch.autograd.grad(values.square().mean(), parameters, allow_unused=True)

cases = [False, True, False, True]
tasks = [partial(gradient, velocity, rates, case) for case in cases]
for found, case in zip(in_threads(tasks, torch.device("cpu")), cases, strict=True):
    expected = gradient(field, field.velocity_and_divergence, case)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert max(each.abs().max() for each in expected if each is not None) > 0.01
"""


# all layers of a field share what is compiled for one of them
LAYERS = """
import torch
from functools import partial
from torch._dynamo.utils import counters
from boltztilt.networks.compilation import compiled
from boltztilt.networks.unrolled import UnrolledField

torch.manual_seed(0)
field = UnrolledField(3, n_hidden=8, n_channels=3, max_degree=1).requires_grad_(False)
for parameter in field.parameters():
    parameter += 0.1 * torch.randn(parameter.shape)
times, positions = torch.tensor([0.7]), torch.randn(1, 5, 3)
_, _, jacobian = field.with_steps(partial(compiled, network=field, wanted=True))
found = jacobian(times, positions)
assert counters["stats"]["unique_graphs"] == 1, counters["stats"]
expected = field.velocity_and_jacobian(times, positions)
torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
assert expected[1].abs().max() > 0.1
"""


# a compiler that refuses everything, as where headers are missing
FAILURE = """
import warnings
import torch
from boltztilt.networks.compilation import compiled
from boltztilt.networks.perceptron import Perceptron

field = Perceptron(n_atoms=2, n_dims=2, n_hidden=8)
torch.nn.init.normal_(field.layers[-1].weight)
times, positions = torch.tensor([0.1, 0.8]), torch.randn(2, 2, 2)
found = compiled(field, field, wanted=True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        assert torch.equal(found(times, positions), field(times, positions))
messages = [str(each.message) for each in caught if "torch.compile failed" in str(each.message)]
assert len(messages) == 1 and "compile = false" in messages[0], messages
"""


def test_failing_compiler_warns_once_and_goes_on_without(tmp_path):
    environment = os.environ | {"CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", FAILURE]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", [COMPARISON, THREADS, LAYERS], ids=["values", "threads", "layers"]
)
def test_compiled_field_gives_the_same_numbers(script):
    if not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
