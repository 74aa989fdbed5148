"""Particles: rollouts, rejuvenation at any level, rewards and systematic resampling."""

import math

import pytest
import torch
from torch import nn

from boltztilt.energy import CountedPotential, Potential
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.sampling.base import Gaussian
from boltztilt.sampling.transport import FieldRates
from boltztilt.tilt.population import (
    LEAPFROG_STEPS,
    Chains,
    resample,
    rewards,
    rollouts,
)
from boltztilt.tilt.recipe import RECENTRINGS

N = 2000
STIFFNESS = 4.0
CPU = torch.device("cpu")


class Stretch(nn.Module):
    """The field log(s) x, which multiplies every length by s between t = 0 and 1."""

    def __init__(self, factor, dof):
        super().__init__()
        self.rate, self.dof = math.log(factor), dof

    def forward(self, times, positions):
        return self.rate * positions

    def velocity_and_divergence(self, times, positions):
        return self(times, positions), torch.full_like(times, self.rate * self.dof)


class HalfBroken(Harmonic):
    """A harmonic well whose energy is NaN where the first coordinate is positive."""

    def energy(self, positions):
        return torch.where(positions[:, 0, 0] > 0, math.nan, super().energy(positions))

    energy_and_force = Potential.energy_and_force


def chains(kind, generator, centered=True, step_size=0.3):
    potential = CountedPotential(Harmonic(4, STIFFNESS, centered=centered))
    base = Gaussian(4, 3, 1.0, centered)
    return Chains(potential, base, kind, step_size, generator)


def level_variance(a):
    return 1 / (1 - a + a * STIFFNESS)


def radius_z(positions, dof, variance):
    """z-score of the mean of |x|², whose variance is 2 dof v²."""
    squares = positions.double().square().sum(dim=(1, 2))
    return float((squares.mean() - dof * variance) / (variance * math.sqrt(2 * dof / N)))


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", RECENTRINGS)
def test_every_recentring_keeps_the_law_of_its_level(kind, a, centered, generator):
    run = chains(kind, generator, centered)
    start = run.base.sample(N, generator) * math.sqrt(level_variance(a))
    moved, acceptance = run.run(start, a, 15)
    assert abs(radius_z(moved, run.base.dof, level_variance(a))) < 3.5
    if kind == "none":
        assert moved is start
        assert run.potential.n_energy == 0
    else:
        assert 0.1 < acceptance < 0.999
        still = (moved == start).flatten(1).all(dim=1).float().mean()
        assert still < 0.3
        steps = LEAPFROG_STEPS if kind == "hmc" else 15
        assert run.potential.n_energy == (0 if a == 0 else (steps + 1) * N)


@pytest.mark.parametrize(("kind", "n_steps"), [("mala", 40), ("hmc", 320), ("random_walk", 140)])
def test_chains_bring_a_wrong_law_to_their_level(kind, n_steps, generator):
    run = chains(kind, generator)
    start = 1.5 * run.base.sample(N, generator)
    for _ in range(2):
        start, _ = run.run(start, 0.5, n_steps // 2)
    assert abs(radius_z(start, run.base.dof, level_variance(0.5))) < 3.5


def test_step_size_is_carried_from_call_to_call_and_never_exceeds_the_base(generator):
    run = chains("mala", generator, step_size=1e-4)
    start = run.base.sample(200, generator)
    run.run(start, 0.5, 30)
    first = run.step_size
    assert first > 1e-3
    for _ in range(5):
        run.run(start, 0.0, 20)
    assert run.step_size <= run.base.std


def test_chains_never_enter_regions_of_nan_but_count_their_visits(generator):
    potential = CountedPotential(HalfBroken(4, STIFFNESS, centered=False))
    run = Chains(potential, Gaussian(4, 3, 1.0, False), "mala", 0.3, generator)
    start = run.base.sample(500, generator)
    inside = potential.energy(start).isnan()
    moved, _ = run.run(start, 0.7, 30)
    energy = potential.energy(moved)
    assert torch.isfinite(energy[~inside]).all()
    assert energy[inside].isfinite().any()  # a chain that starts there leaves when it can
    assert potential.n_nonfinite > 2 * inside.sum()


def test_rollouts_carry_positions_and_exact_densities(generator):
    base = Gaussian(3, 2, 0.8)
    n = 1200
    field = FieldRates.of(Stretch(2.0, base.dof), False)
    ends, log_density = rollouts(field, base, n, 10, generator, True, CPU)
    assert ends.shape == (n, 3, 2)
    exact = Gaussian(3, 2, 1.6).log_density(ends)
    torch.testing.assert_close(log_density, exact, atol=1e-4, rtol=0)
    assert len(ends.unique(dim=0)) == n


def test_reward_is_relative_to_the_base(generator):
    """log E_0[exp r] = log ∫ exp(-U), whatever the base."""
    base, potential = Gaussian(4, 3, 0.9), Harmonic(4, 2.0)
    reward = rewards(CountedPotential(potential), base, base.sample(20_000, generator))
    ratio = (reward - potential.log_z).exp()
    assert abs((ratio.mean() - 1) / (ratio.std() / math.sqrt(20_000))) < 3.5


def test_nan_energies_and_positions_have_no_reward(generator):
    potential = CountedPotential(HalfBroken(4, STIFFNESS))
    positions = Gaussian(4).sample(100, generator)
    positions[0] = math.nan
    reward = rewards(potential, Gaussian(4), positions)
    lost = (positions[:, 0, 0] > 0) | positions[:, 0, 0].isnan()
    assert (reward[lost] == -math.inf).all()
    assert torch.isfinite(reward[~lost]).all()
    assert potential.n_nonfinite == int(lost.sum())


def test_systematic_resampling_rounds_every_share_up_or_down(generator):
    weights = torch.rand(200, generator=generator, dtype=torch.float64) ** 3
    weights[50:80] = 0
    positions = torch.arange(200.0).view(-1, 1, 1)
    drawn = positions[resample(weights, generator)].flatten().long()
    counts = torch.bincount(drawn, minlength=200)
    expected = 200 * weights / weights.sum()
    assert len(drawn) == 200
    assert ((counts >= expected.floor()) & (counts <= expected.ceil())).all()
    assert counts[50:80].sum() == 0


def test_resampling_is_unbiased(generator):
    weights = torch.tensor([0.1, 0.5, 1.7, 1.7], dtype=torch.float64)
    positions = torch.arange(4.0).view(-1, 1, 1)
    counts = torch.stack(
        [
            torch.bincount(positions[resample(weights, generator)].flatten().long(), minlength=4)
            for _ in range(2000)
        ]
    ).double()
    z = (counts.mean(0) - weights) / (counts.std(0) / math.sqrt(2000))
    assert z.abs().max() < 3.5
