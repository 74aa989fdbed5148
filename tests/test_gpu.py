"""Sampling and training on a GPU: the same numbers as on the processor, and moves between the two.

Without a GPU these run on one that is pretended; `pytest -m gpu` runs them on a real one.
"""

import math

import numpy as np
import pytest
import torch
from pretended_gpu import pretended_gpu
from small_runs import SMALL
from wells import NETWORK, rough_sampler, well

from boltztilt.potentials.harmonic import Harmonic
from boltztilt.potentials.lennard_jones import LennardJones
from boltztilt.sampling.sampler import WORTH_COMPILING, Sampler
from boltztilt.systems.system import System
from boltztilt.tilt.training import train

FEW_UPDATES = {
    "network": {**NETWORK, "n_hidden": 4, "n_channels": 2},
    "n_particles": 32,
    "polish_steps": 2,
    "likelihood_steps": 1,
    "cess": 0.5,
}


@pytest.fixture(params=["pretended", pytest.param("real", marks=pytest.mark.gpu)])
def gpu(request, monkeypatch):
    """The name of the GPU."""
    if request.param == "real":
        if not torch.cuda.is_available():
            pytest.skip("there is no GPU")
        yield "cuda"
    else:
        with pretended_gpu(monkeypatch):
            yield "cuda"


def on(device, sampler):
    """The same sampler on a device."""
    sampler.field.to(device)
    return sampler


def rough():
    return rough_sampler(well())


def unrolled():
    network = {"kind": "unrolled", "n_layers": 2, "n_hidden": 8, "n_channels": 3}
    return rough_sampler(System("well", Harmonic(n_atoms=4, stiffness=1.2)), network, 0.05)


def cut_off():
    return rough_sampler(well(), {**NETWORK, "cutoff": 1.5})


def test_a_gpu_is_as_hard_to_mix_as_a_real_one(gpu):
    there, here = torch.ones(3, device=gpu), torch.ones(3)
    assert there.device == (2 * there).sum().device == torch.device("cuda", 0)
    assert there.cpu().device == there.to(here).device == torch.device("cpu")
    assert (there + torch.tensor(1.0)).tolist() == there[torch.tensor([0, 1, 2])].add(1).tolist()
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(RuntimeError, match="same device"):
        torch.cat([here, there])
    with pytest.raises(TypeError, match="can't convert"):
        np.asarray(there)
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device=gpu, generator=torch.Generator())


@pytest.mark.parametrize(
    ("made", "settings"),
    [
        (rough, {}),
        (cut_off, {"solver": "dopri5"}),
        (unrolled, {}),
        (unrolled, {"solver": "rk4"}),
        (unrolled, {"with_density": False}),
    ],
)
def test_structures_and_densities_are_those_of_the_processor(gpu, made, settings):
    steps = {} if settings.get("solver") == "dopri5" else {"n_steps": 4}
    here = made().sample(6, seed=1, **steps, **settings)
    there = on(gpu, made()).sample(6, seed=1, **steps, **settings)
    assert there.info["device"] == "cuda:0"
    torch.testing.assert_close(there.positions, here.positions, atol=1e-4, rtol=0)
    assert there.log_density is None or there.log_density.std() > 0.1
    torch.testing.assert_close(there.log_density, here.log_density, atol=1e-3, rtol=0)


@pytest.mark.parametrize("made", [rough, unrolled])
def test_log_densities_of_given_structures_are_those_of_the_processor(gpu, made):
    drawn = made().sample(4, n_steps=10)
    found = on(gpu, made()).log_density(drawn.positions, n_steps=10)
    torch.testing.assert_close(found, drawn.log_density, atol=0.01, rtol=0)


def test_stochastic_structures_are_those_of_the_processor(gpu):
    def sampler():
        made = rough()
        return Sampler(made.system, made.field, {"recipe": {"coupling": "independent"}})

    here = sampler().sample(5, n_steps=4, stochastic=True)
    there = on(gpu, sampler()).sample(5, n_steps=4, stochastic=True)
    torch.testing.assert_close(there.positions, here.positions, atol=1e-4, rtol=0)


def test_a_gpu_compiles_only_for_more_work_than_a_processor(gpu):
    """A processor takes a minute for a thousand structures of LJ-55, a GPU to compile for them."""
    assert WORTH_COMPILING["cuda"] > 10 * WORTH_COMPILING["cpu"]
    sampler = on(gpu, rough())
    n_pairs = sampler.system.n_atoms * (sampler.system.n_atoms - 1) / 2
    between = int(3 * WORTH_COMPILING["cpu"] / n_pairs)
    assert not sampler._rates(between, "rk4").compiled


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"objective": "wfm", "recentring": "random_walk", "coupling": "independent"},
        {"recentring": "hmc", "precision": "bfloat16", "likelihood_steps": 0},
        {"likelihood_forces": True, "optimiser": "muon"},
    ],
)
def test_training_reaches_the_field_of_the_processor(gpu, settings):
    """The random numbers are the same, so a few updates end at the same weights."""
    recipe = {**SMALL, **FEW_UPDATES, **settings}
    cluster = System("cluster", LennardJones(4))
    fields = [train(cluster, device=device, **recipe).field for device in ("cpu", gpu)]
    here, there = (
        torch.cat([each.detach().cpu().flatten() for each in field.parameters()])
        for field in fields
    )
    assert here.abs().max() > 0.1
    tolerance = 0.05 if settings.get("precision") == "bfloat16" else 1e-3
    torch.testing.assert_close(there, here, atol=tolerance, rtol=0)


def test_a_run_moves_to_a_gpu_and_back(gpu, tmp_path):
    cluster, settings = System("cluster", LennardJones(4)), {**SMALL, "polish_steps": 4000}
    out = tmp_path / "run"
    train(cluster, out=out, max_minutes=0.01, **settings)
    for device in (gpu, "cpu", gpu):
        sampler = train(cluster, out=out, resume=True, device=device, max_minutes=0.02)
        assert sampler.device.type == torch.device(device).type
        assert not sampler.metadata["finished"]
    loaded = Sampler.load(out, cluster)
    assert loaded.device.type == "cpu"
    assert math.isfinite(loaded.sample(5).log_z.value)
