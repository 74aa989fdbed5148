"""Samplers that draw with noise on the way."""

import math

import pytest
import torch
from torch import nn
from wells import STIFFNESS, well

from boltztilt.sampling.sampler import Sampler, sample
from boltztilt.sampling.solvers import STOCHASTIC_ROUNDS
from boltztilt.systems.system import System


class ConditionalMean(nn.Module):
    """E[x1 - x0 | x_t] for independent pairs of N(0, 1) and the harmonic well."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.dof = system.base.dof
        self.variance = nn.Parameter(torch.tensor(1 / STIFFNESS))

    def rate(self, times):
        noise = 1 - times
        return (times * self.variance - noise) / (noise**2 + times**2 * self.variance)

    def forward(self, times, positions):
        return self.rate(times)[:, None, None] * positions

    def velocity_and_divergence(self, times, positions):
        return self(times, positions), self.rate(times) * self.dof


def stochastic_sampler(**recipe) -> Sampler:
    system, recipe = well(), {"coupling": "independent", **recipe}
    return Sampler(system, ConditionalMean(system), {"recipe": recipe})


def test_stochastic_samples_have_the_law_of_the_target_and_no_weights():
    ensemble = stochastic_sampler().sample(2000, seed=3, stochastic=True)
    assert not ensemble.has_weights
    assert ensemble.info["stochastic"]
    assert ensemble.info["n_steps"] == STOCHASTIC_ROUNDS
    dof = ensemble.system.base.dof
    mean = ensemble.mean_energy(weighted=False)
    assert abs(mean.value - dof / 2) < 4 * mean.error
    assert ensemble.energies.std() == pytest.approx(math.sqrt(dof / 2), rel=0.1)


def test_batches_of_stochastic_samples_change_nothing_but_rounding():
    sampler = stochastic_sampler()
    settings = {"seed": 5, "n_steps": 3, "stochastic": True}
    whole, parts = sampler.sample(23, **settings), sampler.sample(23, batch_size=7, **settings)
    torch.testing.assert_close(parts.positions, whole.positions, atol=1e-5, rtol=1e-5)
    other = sampler.sample(23, **{**settings, "seed": 6})
    assert (other.positions - whole.positions).abs().min() > 0


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"coupling": "aligned"}, r"coupling = 'aligned'.*needs 'independent'.*--stochastic"),
        ({"likelihood_steps": 600}, "likelihood_steps = 600.*needs 0"),
    ],
)
def test_fields_without_known_noise_are_refused_for_stochastic_sampling(recipe, words):
    with pytest.raises(ValueError, match=words):
        stochastic_sampler(**recipe).sample(2, stochastic=True)


def test_stochastic_sampling_refuses_the_adaptive_solver():
    with pytest.raises(ValueError, match="its own steps: leave out the solver, not 'dopri5'"):
        stochastic_sampler().sample(2, stochastic=True, solver="dopri5")


def test_shipped_droplet_drawn_with_noise_is_close_to_equilibrium():
    """Raw energies of LJ-55; the reference has a median of -325.8 and a spread of 14."""
    ensemble = sample("lj55", 8, seed=2, stochastic=True, n_steps=12)
    assert -350 < ensemble.energies.median() < -295
