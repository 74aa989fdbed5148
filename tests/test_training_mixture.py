"""Training on a Gaussian mixture, whose tilted laws and free energy are known."""

import pytest
import torch

from boltztilt.potentials.gaussian_mixture import GaussianMixture
from boltztilt.systems.system import System
from boltztilt.tilt.training import train

MODES = GaussianMixture(
    [[[-1.2, 0.0]], [[1.2, 0.4]]], stds=[0.5, 0.4], weights=[0.35, 0.65], log_z=1.5
)
SLOPE = torch.tensor([[0.3, -0.5]], dtype=torch.float64)
PLANE = {
    "network": {"kind": "perceptron", "n_hidden": 48},
    "coupling": "independent",
    "n_particles": 1024,
    "rollout_steps": 8,
    "recentring_steps": 10,
    "steps_per_rung": 40,
    "first_rung_factor": 3.0,
    "polish_steps": 0,
    "warmup_steps": 10,
    "average_decay": 0.98,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "itm"},
        {"objective": "wfm"},
        {"objective": "wfm", "exact_weights": True, "matching_fraction": 0.0},
        {"objective": "itm", "recentring": "hmc"},
    ],
    ids=["itm", "wfm", "exact weights", "hmc"],
)
def test_trained_mixture_has_exact_mean_modes_and_free_energy(changes):
    """The target is a mixture tilted by a linear reward: a mixture again, known exactly."""
    target = MODES.tilted(SLOPE)
    sampler = train(System("mixture", target), seed=1, **{**PLANE, "polish_steps": 1000}, **changes)
    check_mixture(sampler, target, n=4000, smallest_ess=0.8, raw_error=0.12)


def check_mixture(sampler, target, n, smallest_ess, raw_error):
    ensemble = sampler.sample(n, seed=2)
    assert ensemble.ess > smallest_ess
    log_z = ensemble.log_z
    assert abs(log_z.value - target.log_z) < 3.5 * log_z.error
    exact = target.mean()[0]

    def share_of_first(positions):
        return target._log_terms(positions.double()).softmax(dim=1)[:, 0]

    expected = [float(exact[0]), float(exact[1]), float(target.weights[0])]
    observables = [lambda x: x[:, 0, 0], lambda x: x[:, 0, 1], share_of_first]
    for observable, value in zip(observables, expected, strict=True):
        weighted = ensemble.mean(observable)
        assert abs(weighted.value - value) < 3.5 * weighted.error
        raw = ensemble.mean(observable, weighted=False)
        assert abs(raw.value - value) < raw_error


def test_short_training_samples_the_tilted_mixture():
    target = MODES.tilted(SLOPE)
    sampler = train(System("mixture", target), seed=1, **PLANE)
    check_mixture(sampler, target, n=1500, smallest_ess=0.4, raw_error=0.5)
