"""Whole-ladder facts: a harmonic target from a Gaussian base is exact at every level.

With base N(0, s²) and stiffness k the law at level a is Gaussian with variance v,
1/v = (1 - a)/s² + a k, and the exact field between independent end points is linear.
"""

import math

import pytest
import torch
from torch import nn

from boltztilt.energy import CountedPotential
from boltztilt.potentials.gaussian_mixture import GaussianMixture
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.sampling.base import Gaussian
from boltztilt.sampling.flow import integrate, warped_grid
from boltztilt.sampling.sampler import Sampler
from boltztilt.sampling.transport import FieldRates
from boltztilt.systems.system import System
from boltztilt.tilt.interpolant import Pairs, draw_times, interpolate
from boltztilt.tilt.ladder import climb
from boltztilt.tilt.objectives import implicit_target, tilt_weights
from boltztilt.tilt.population import Chains
from boltztilt.tilt.recipe import RECENTRINGS, Recipe
from boltztilt.tilt.regression import draw_bridge, matching_loss, tilting_loss
from boltztilt.tilt.schedule import conditional_ess

N = 4000
BASE_STD, N_ATOMS, N_DIMS = 1.2, 3, 2
CPU = torch.device("cpu")


class HarmonicTilt:
    """The closed forms of every level between the base and a harmonic well."""

    def __init__(self, stiffness, centered=True):
        self.stiffness = stiffness
        self.base = Gaussian(N_ATOMS, N_DIMS, BASE_STD, centered)
        self.potential = Harmonic(N_ATOMS, stiffness, N_DIMS, centered)
        self.excess = stiffness - 1 / BASE_STD**2
        self.log_norm = 0.5 * self.base.dof * math.log(2 * math.pi * BASE_STD**2)

    def variance(self, a):
        return 1 / (1 / BASE_STD**2 + a * self.excess)

    def log_z(self, a):
        """log E_0[exp(a r)]."""
        return 0.5 * self.base.dof * math.log(self.variance(a) / BASE_STD**2) + a * self.log_norm

    def mean_reward(self, a):
        return self.log_norm - 0.5 * self.excess * self.variance(a) * self.base.dof

    def reward_std(self, a):
        return abs(self.excess) * self.variance(a) * math.sqrt(self.base.dof / 2)

    def cess(self, a, step):
        return math.exp(2 * self.log_z(a + step) - self.log_z(a) - self.log_z(a + 2 * step))

    def field(self, a):
        return LinearField(self.variance(a), self.base.dof)

    def chains(self, generator, kind="none"):
        counted = CountedPotential(self.potential)
        return Chains(counted, self.base, kind, BASE_STD / 3, generator)

    def climb(self, a, generator, field=None, kind="none", **settings):
        settings = {"n_particles": N, "rollout_steps": 12, "recentring": kind} | settings
        field = FieldRates.of(field or self.field(a), False)
        chains = self.chains(generator, kind)
        return climb(field, self.base, a, Recipe(**settings), chains, CPU)


class LinearField(nn.Module):
    """The exact field from the base to N(0, variance), independent end points."""

    def __init__(self, variance, dof):
        super().__init__()
        self.variance, self.dof = variance, dof
        self.shift = nn.Parameter(torch.zeros(()))

    def slope(self, times):
        noise = (1 - times) * BASE_STD**2
        ends = times * self.variance
        return (ends - noise) / ((1 - times) * noise + times * ends) + self.shift

    def forward(self, times, positions):
        return self.slope(times)[:, None, None] * positions

    def velocity_and_divergence(self, times, positions):
        return self(times, positions), self.dof * self.slope(times)


TILTS = {
    "tightening": HarmonicTilt(4.0),
    "loosening": HarmonicTilt(0.45),
    "not centred": HarmonicTilt(4.0, centered=False),
}


@pytest.fixture(params=TILTS)
def tilt(request):
    return TILTS[request.param]


@pytest.mark.parametrize("a", [0.0, 0.4, 1.0])
def test_exact_field_carries_the_base_to_its_level_with_exact_density(tilt, a, generator):
    starts = tilt.base.sample(500, generator, dtype=torch.float64)
    result = integrate(tilt.field(a).double(), starts, warped_grid(20))
    scale = math.sqrt(tilt.variance(a)) / BASE_STD
    torch.testing.assert_close(result.positions, scale * starts, rtol=2e-4, atol=1e-6)
    log_q = tilt.base.log_density(starts) + result.log_density_change
    level = Gaussian(N_ATOMS, N_DIMS, math.sqrt(tilt.variance(a)), tilt.base.centered)
    torch.testing.assert_close(log_q, level.log_density(result.positions), rtol=0, atol=1e-3)


def test_every_rung_of_the_ladder_is_exact(tilt, generator):
    a, total, variance, rungs = 0.0, 0.0, 0.0, []
    while a < 1:
        rung = tilt.climb(a, generator, cess=0.9)
        rungs.append(rung)
        error = math.sqrt((1 / tilt.cess(a, rung.step) - 1) / N)
        exact = tilt.log_z(rung.new_a) - tilt.log_z(a)
        assert abs(rung.log_z_change - exact) / error < 3.5
        reward_error = tilt.reward_std(a) / math.sqrt(N)
        assert abs(rung.mean_reward - tilt.mean_reward(a)) / reward_error < 3.5
        a, total, variance = rung.new_a, total + rung.log_z_change, variance + error**2
    assert a == 1.0
    assert len(rungs) > 1
    assert abs(total - tilt.potential.log_z) / math.sqrt(variance) < 3.5
    assert tilt.log_z(1.0) == pytest.approx(tilt.potential.log_z)


@pytest.mark.parametrize("a", [0.0, 0.5])
def test_ess_of_the_rollouts_is_the_closed_form(tilt, a, generator):
    step, kept = 0.25 * (1 - a), []
    for _ in range(16):
        rung = tilt.climb(a, generator, n_particles=1000)
        kept.append(conditional_ess(rung.scaled_rewards / rung.step, step))
    kept = torch.tensor(kept, dtype=torch.float64)
    assert abs(kept.mean() - tilt.cess(a, step)) / (kept.std() / 4) < 3.5
    assert tilt.cess(a, step) < 0.999


def test_matching_particles_follow_the_new_level(tilt, generator):
    for kind in RECENTRINGS:
        rung = tilt.climb(0.3, generator, kind=kind, recentring_steps=5)
        squares = rung.matching.double().square().sum(dim=(1, 2))
        variance = tilt.variance(rung.new_a)
        error = variance * math.sqrt(2 * tilt.base.dof * (1 + 1 / rung.cess) / N)
        assert abs(squares.mean() - tilt.base.dof * variance) / error < 3.5
        assert rung.mean_energy == pytest.approx(float(0.5 * tilt.stiffness * squares.mean()))


def test_three_ways_to_the_free_energy_agree(tilt, generator):
    """The integral of E_a[r] over a, the mean weight of a sampler, and the closed form."""
    import numpy as np

    nodes, masses = np.polynomial.legendre.leggauss(6)
    nodes, masses = (nodes + 1) / 2, masses / 2
    integral = sum(
        mass * tilt.climb(a, generator).mean_reward for a, mass in zip(nodes, masses, strict=True)
    )
    variance = sum((m * tilt.reward_std(a)) ** 2 / N for a, m in zip(nodes, masses, strict=True))
    error = math.sqrt(variance)
    truncated = sum(m * tilt.mean_reward(a) for a, m in zip(nodes, masses, strict=True))
    assert abs(truncated - tilt.log_z(1.0)) < 0.3 * error
    assert abs(integral - tilt.potential.log_z) < 3.5 * error
    system = System("harmonic", tilt.potential, base_std=BASE_STD)
    log_z = Sampler(system, tilt.field(0.9), {}).sample(N, seed=3).log_z
    assert abs(log_z.value - tilt.potential.log_z) < 3.5 * log_z.error + 1e-3
    assert log_z.error > 1e-4
    assert abs(log_z.value - integral) < 3.5 * math.hypot(error, log_z.error) + 1e-3


def test_exact_weights_repair_a_wrong_field_and_bare_rewards_do_not(generator):
    tilt, a, wrong = TILTS["tightening"], 0.6, 0.45
    field = tilt.field(wrong)
    rung = tilt.climb(a, generator, field=field, exact_weights=True, objective="wfm")
    kept = tilt.cess(wrong, a - wrong)
    assert abs(rung.mean_reward - tilt.mean_reward(a)) * math.sqrt(N * kept) < 3.5 * (
        tilt.reward_std(a)
    )
    whole = tilt.cess(wrong, rung.new_a - wrong)
    error = math.sqrt((1 / whole - 1) / N)
    assert abs(rung.log_z_change - tilt.log_z(rung.new_a)) < 3.5 * error
    squares = rung.particles.double().square().sum(dim=(1, 2))
    expected = tilt.base.dof * tilt.variance(rung.new_a)
    assert abs((rung.weights * squares).mean() / expected - 1) < 0.06
    bare = tilt.climb(a, generator, field=field)
    error = tilt.reward_std(a) / math.sqrt(N)
    assert abs(bare.mean_reward - tilt.mean_reward(a)) / error > 10


def test_rejuvenation_repairs_a_wrong_field():
    tilt, a, generator = TILTS["tightening"], 0.6, torch.Generator().manual_seed(2)
    rung = tilt.climb(
        a, generator, field=tilt.field(0.4), kind="mala", recentring_steps=40, n_particles=2000
    )
    error = tilt.reward_std(a) / math.sqrt(2000)
    assert abs(rung.mean_reward - tilt.mean_reward(a)) / error < 3.5


@pytest.mark.parametrize("objective", ["itm", "wfm", "matching"])
def test_losses_are_stationary_at_the_exact_tilted_field(objective):
    """The mean gradient by a shift of the slope vanishes at the new field, not at the old one."""
    tilt, generator = TILTS["tightening"], torch.Generator().manual_seed(4)
    rung = tilt.climb(0.2, generator, n_particles=50_000, cess=0.8)
    recipe = Recipe(coupling="independent", batch_size=1024)
    species = torch.zeros(N_ATOMS, dtype=torch.long)
    old, new = tilt.field(0.2), tilt.field(rung.new_a)

    def gradient(field):
        particles, weights = rung.particles, rung.weights
        if objective == "matching":
            particles, weights = rung.matching, torch.ones(len(rung.matching))
        bridge = draw_bridge(particles, weights, tilt.base, species, True, recipe, generator, 0)
        if objective == "matching":
            loss = matching_loss(field, bridge, tilt.base)
        else:
            loss = tilting_loss(field, old, bridge, tilt.base, rung, objective)
        return torch.autograd.grad(loss, field.shift)[0]

    def z_score(field):
        drawn = torch.stack([gradient(field) for _ in range(100)])
        return float(drawn.mean() / (drawn.std() / 10))

    assert abs(z_score(new)) < 3.5
    assert abs(z_score(old)) > 5


MIXTURE = GaussianMixture(
    [[[-1.5, 0.0]], [[1.5, 0.5]], [[0.0, 1.5]]], stds=[0.4, 0.5, 0.3], weights=[0.5, 0.3, 0.2]
)
SLOPE = torch.tensor([[0.8, -0.4]], dtype=torch.float64)


def mixture_field(mixture, times, positions):
    """E[dI/dt | I_t] between a standard Gaussian and a mixture: exact, mode by mode."""
    t = times[:, None, None, None]
    means, stds = mixture.means, mixture.stds[:, None, None]
    variances = (1 - t) ** 2 + t**2 * stds**2
    offsets = positions[:, None] - t * means
    squares = (offsets.square() / (2 * variances) + variances.log() / 2).sum(dim=(2, 3))
    shares = (mixture.weights.log() - squares).softmax(dim=1)[..., None, None]
    rates = means + (t * stds**2 - (1 - t)) / variances * offsets
    return (shares * rates).sum(dim=1)


@pytest.mark.parametrize("control_variate", [0.0, 1.0])
@pytest.mark.parametrize("step", [0.1, 1.0])
def test_mixture_tilt_by_a_linear_reward_is_the_fixed_point(step, control_variate, generator):
    """The implicit residual at the exact tilted field is orthogonal to functions of (t, I_t)."""
    n = 100_000
    ends = MIXTURE.sample(n, generator, dtype=torch.float64)
    starts = torch.randn(ends.shape, generator=generator, dtype=torch.float64)
    weights = tilt_weights(step * (ends * SLOPE).sum(dim=(1, 2)))
    bridge = interpolate(Pairs(starts, ends, weights), draw_times(n, 1, 0.05, generator).double())
    times, positions = bridge.times, bridge.positions
    old = mixture_field(MIXTURE, times, positions)
    new = mixture_field(MIXTURE.tilted(step * SLOPE), times, positions)
    features = [torch.ones(n, 1, 2), positions, positions.tanh() * positions[..., :1]]
    features += [times[:, None, None] * positions.sin()]

    def z_scores(field):
        target = implicit_target(old, field, bridge.rates, bridge.weights, control_variate)
        products = torch.stack([(f * (target - field)).sum(dim=(1, 2)) for f in features])
        return products.mean(dim=1) / (products.std(dim=1) / math.sqrt(n))

    assert z_scores(new).abs().max() < 3.5
    assert z_scores(old).abs().max() > 5


def test_mixture_tilt_has_the_exact_free_energy_and_mean(generator):
    n = 50_000
    ends = MIXTURE.sample(n, generator)
    reward = (ends.double() * SLOPE).sum(dim=(1, 2))
    tilted, weights = MIXTURE.tilted(SLOPE), tilt_weights(reward)
    ratio = (reward - tilted.log_z).exp()
    assert abs((ratio.mean() - 1) / (ratio.std() / math.sqrt(n))) < 3.5
    excess = weights[:, None, None] * (ends - tilted.mean())
    assert (excess.mean(0) / (excess.std(0) / math.sqrt(n))).abs().max() < 3.5
