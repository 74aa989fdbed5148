"""One rung: what is kept, what is lost, and what is measured."""

import math

import pytest
import torch
from torch import nn

from boltztilt.energy import CountedPotential, Potential
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.potentials.lennard_jones import LennardJones
from boltztilt.sampling.base import Gaussian
from boltztilt.sampling.transport import FieldRates
from boltztilt.tilt.ladder import climb
from boltztilt.tilt.population import Chains
from boltztilt.tilt.recipe import Recipe

CPU = torch.device("cpu")
BASE = Gaussian(4)


class Still(nn.Module):
    """The field that moves nothing, except that every tenth path diverges."""

    def __init__(self, diverging=False):
        super().__init__()
        self.diverging = diverging

    def forward(self, times, positions):
        velocity = torch.zeros_like(positions)
        if self.diverging:
            velocity[::10] = math.nan
        return velocity

    def velocity_and_divergence(self, times, positions):
        return self(times, positions), torch.zeros_like(times)


class HalfBroken(Harmonic):
    """A harmonic well whose energy is NaN where the first coordinate is positive."""

    def energy(self, positions):
        return torch.where(positions[:, 0, 0] > 0, math.nan, super().energy(positions))

    energy_and_force = Potential.energy_and_force


def rung_of(potential, a=0.0, field=None, seed=0, **settings):
    settings = {"n_particles": 1000, "recentring_steps": 3, "rollout_steps": 2} | settings
    recipe = Recipe(**settings)
    generator = torch.Generator().manual_seed(seed)
    chains = Chains(CountedPotential(potential), BASE, recipe.recentring, 0.2, generator)
    return climb(FieldRates.of(field or Still(), False), BASE, a, recipe, chains, CPU), chains


def test_step_keeps_the_conditional_ess_of_the_recipe():
    for target in (0.5, 0.9):
        rung, _ = rung_of(Harmonic(4, 5.0), cess=target)
        assert rung.cess == pytest.approx(target)
        kept = rung.weights.sum() ** 2 / rung.weights.square().sum() / len(rung.weights)
        assert float(kept) == pytest.approx(target)
        assert float(rung.weights.mean()) == pytest.approx(1.0)


def test_carried_particles_take_the_place_of_rollouts(generator):
    """A field whose every path diverges is never asked."""
    recipe = Recipe(recentring_steps=3)
    chains = Chains(CountedPotential(Harmonic(4, 5.0)), BASE, "mala", 0.2, generator)
    carried, ancestors = BASE.sample(500, generator), 1000 + torch.arange(500)
    field = FieldRates.of(Still(diverging=True), False)
    rung = climb(field, BASE, 0.3, recipe, chains, CPU, (carried, ancestors))
    assert torch.equal(rung.particles, carried)
    assert rung.step > 0


def test_ancestors_follow_the_particles():
    rung, _ = rung_of(Harmonic(4, 5.0), recentring="none")
    assert torch.equal(rung.matching, rung.particles[rung.ancestors])
    assert 1 < len(rung.ancestors.unique()) < len(rung.particles)


def test_last_step_ends_exactly_at_one():
    rung, _ = rung_of(Harmonic(4, 1.1))
    assert rung.step == 1.0
    assert rung.new_a == 1.0
    rung, _ = rung_of(Harmonic(4, 1.1), a=1 - 1e-3)
    assert rung.new_a == 1.0


def test_first_rung_of_a_singular_core_is_tiny_but_finite():
    rung, chains = rung_of(LennardJones(4))
    assert 0 < rung.step < 0.05
    assert torch.isfinite(rung.weights).all()
    assert math.isfinite(rung.mean_energy)
    assert chains.potential.n_energy > 1000


def test_energies_that_are_nan_weigh_nothing_and_are_counted():
    # A CESS of 0.8 cannot be kept where half of the base draws are lost; 0.3 can.
    with pytest.raises(ValueError, match="rewards are finite"):
        rung_of(HalfBroken(4, 2.0), cess=0.8)
    rung, chains = rung_of(HalfBroken(4, 2.0), cess=0.3)
    lost = rung.particles[:, 0, 0] > 0
    assert 400 < lost.sum() < 600
    assert (rung.weights[lost] == 0).all()
    assert (rung.scaled_rewards[lost] == -math.inf).all()
    assert torch.isfinite(chains.potential.energy(rung.matching)).all()
    assert chains.potential.n_nonfinite >= lost.sum()
    assert math.isfinite(rung.mean_reward)
    assert math.isfinite(rung.log_z_change)


@pytest.mark.parametrize("exact", [False, True])
def test_paths_that_diverge_are_dropped(exact):
    rung, _ = rung_of(
        Harmonic(4, 1.3),
        a=0.1,
        field=Still(diverging=True),
        objective="wfm",
        exact_weights=exact,
    )
    assert len(rung.particles) == len(rung.weights) == len(rung.scaled_rewards) == 900
    assert torch.isfinite(rung.particles).all()
    assert torch.isfinite(rung.matching).all()
    assert math.isfinite(rung.log_z_change)


def test_field_that_diverges_everywhere_is_an_error():
    class Diverging(Still):
        def forward(self, times, positions):
            return positions * math.nan

    with pytest.raises(ValueError, match="no tilt step keeps a conditional ESS"):
        rung_of(Harmonic(4, 2.0), a=0.5, field=Diverging(), recentring="none")


def test_exact_weights_ignore_samples_outside_the_support():
    """At a > 0 the law has no mass where the energy is NaN, so the step must not pay for it."""
    rung, _ = rung_of(
        HalfBroken(4, 1.2), a=0.2, objective="wfm", exact_weights=True, cess=0.8, recentring="none"
    )
    lost = rung.particles[:, 0, 0] > 0
    assert (rung.weights[lost] == 0).all()
    assert rung.cess >= 0.8 - 1e-9
    whole, _ = rung_of(
        Harmonic(4, 1.2), a=0.2, objective="wfm", exact_weights=True, cess=0.8, recentring="none"
    )
    # Half of the space is missing and nothing else: log Z loses log 2.
    assert rung.log_z_change - whole.log_z_change == pytest.approx(-math.log(2), abs=0.15)
    assert rung.mean_reward == pytest.approx(whole.mean_reward, abs=0.2)


def test_same_generator_same_rung():
    first, second = (rung_of(LennardJones(4), seed=5)[0] for _ in range(2))
    assert first.step == second.step
    assert torch.equal(first.matching, second.matching)
    assert not torch.equal(first.matching, rung_of(LennardJones(4), seed=6)[0].matching)
