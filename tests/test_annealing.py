"""Annealed transport against closed forms: unbiased weights, honest errors, a frozen ladder."""

import math
from dataclasses import replace

import pytest
import torch
from scores import z_score

from boltztilt.energy import CallablePotential
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.systems.system import System
from boltztilt.tilt import annealing
from boltztilt.tilt.annealing import ChainGroups, anneal, find_ladder, follow_ladder, smoothed

WELL = Harmonic(4, stiffness=9.0)
SYSTEM = System("well", WELL)
POOR = {"cess": 0.5, "n_steps": 1, "n_leapfrog": 2}  # chains that hardly forget


@pytest.mark.parametrize("centered", [True, False])
def test_free_energy_and_averages_of_a_harmonic_well_are_exact(centered):
    well = Harmonic(4, stiffness=9.0, centered=centered)
    settings = {"n_per_group": 16, "cess": 0.8, "n_steps": 2, "n_leapfrog": 3}
    ensembles = [anneal(System("well", well), 640, seed, **settings) for seed in range(6)]
    for truth, estimates in (
        (well.log_z, [ensemble.log_z for ensemble in ensembles]),
        (well.dof / 2, [ensemble.mean_energy() for ensemble in ensembles]),
    ):
        z = torch.tensor([z_score(estimate, truth) for estimate in estimates])
        assert abs(z.mean()) < 3.5 / math.sqrt(6)
        assert 0.3 < z.std() < 2.0
    assert max(ensemble.log_z.error for ensemble in ensembles) < 0.2


def test_z_is_unbiased_however_few_and_forgetful_the_chains():
    ensemble = anneal(SYSTEM, 6000, n_per_group=3, **POOR)
    ratios = (ensemble.log_weights[::3] - WELL.log_z).exp()
    standard_error = float(ratios.std()) / math.sqrt(len(ratios))
    assert abs(float(ratios.mean()) - 1.0) < 3.5 * standard_error
    assert standard_error < 0.1
    assert float(ratios.log().mean()) < -0.2  # single groups fall short, by Jensen's inequality


@pytest.mark.filterwarnings("ignore:the energy changes")
def test_groups_that_die_count_as_zero():
    """A wall at |z| = c that one base draw in four lies beyond: whole groups have no weight."""
    c = 1.15

    def walled(positions):
        squares = positions.square().sum(dim=(1, 2))
        return torch.where(squares < c**2, 0.5 * squares, math.inf)

    system = System("wall", CallablePotential(walled, 2, 1))
    ensemble = anneal(system, 6000, n_per_group=2, cess=0.6, n_steps=1, n_leapfrog=2)
    ratios = ensemble.log_weights[::2].exp() / math.sqrt(2 * math.pi)
    inside = math.erf(c / math.sqrt(2))
    assert (ratios == 0).double().mean() == pytest.approx((1 - inside) ** 2, abs=0.02)
    assert abs(float(ratios.mean()) - inside) < 3.5 * float(ratios.std()) / math.sqrt(3000)
    assert math.isfinite(ensemble.mean_energy().value)


@pytest.mark.filterwarnings("ignore:the energy changes")
def test_errors_over_groups_see_common_ancestors():
    """A stiff direction decides who survives and keeps steps short: the soft one is inherited."""

    def valley(positions):
        stiff, soft = positions.square().sum(dim=1).unbind(1)
        return 0.5 * (1e4 * stiff + soft)

    system = System("valley", CallablePotential(valley, 2, 2))
    ensemble = anneal(system, 4096, n_per_group=32, **POOR)
    naive = replace(ensemble, groups=None, info={})
    soft, too_sure = (each.mean(lambda x: x[..., 1].square().sum(1)) for each in (ensemble, naive))
    assert soft.error > 1.5 * too_sure.error
    assert abs(z_score(soft, 1.0)) < 3.5
    assert ensemble.log_z.error > 4 * naive.log_z.error
    assert ensemble.n_independent < 0.6 * naive.n_independent
    assert ensemble.info["n_ancestors"] < 0.4 * len(ensemble)


def test_production_follows_the_ladder_of_the_pilot_without_adapting(monkeypatch):
    moves = []

    def recorded(potential, positions, n_steps, step_size, n_leapfrog, generator, adapt, scale):
        moves.append((potential.a, step_size, adapt))
        settings = (n_steps, step_size, n_leapfrog, generator, adapt)
        return hmc(potential, positions, *settings, scale=scale)

    hmc = annealing.hmc
    monkeypatch.setattr(annealing, "hmc", recorded)
    few = anneal(SYSTEM, 30, n_per_group=8, batch_size=16, **POOR)
    n_rungs = few.info["n_rungs"]
    pilot, first, second = (moves[k * n_rungs : (k + 1) * n_rungs] for k in range(3))
    assert len(moves) == 3 * n_rungs
    assert all(adapt for *_, adapt in pilot)
    assert not any(adapt for *_, adapt in first)
    assert first == second
    assert [tilt for tilt, *_ in first] == [tilt for tilt, *_ in pilot]
    assert first[-1][0] == 1.0
    moves.clear()
    anneal(
        SYSTEM, 200, n_per_group=50, batch_size=200, **POOR
    )  # the ladder knows nothing of production
    assert moves[n_rungs:] == first


def test_a_ladder_can_be_followed_with_any_seed():
    pilot, *runs = (
        ChainGroups(WELL, SYSTEM.base, n_groups, 8, torch.Generator().manual_seed(seed), 2, 3)
        for seed, n_groups in ((0, 10), (1, 30), (2, 30))
    )
    ladder = find_ladder(pilot)
    for run in runs:
        follow_ladder(run, ladder)
        assert run.tilt == 1.0
        scores = (run.log_z.mean() - WELL.log_z) / (run.log_z.std() / math.sqrt(30))
        assert abs(scores) < 4.5  # the log is biased, by half its variance
    assert not torch.equal(runs[0].positions, runs[1].positions)


def test_chains_arrive_at_the_target():
    groups = ChainGroups(WELL, SYSTEM.base, 1, 2000, torch.Generator().manual_seed(1), 2, 4)
    ladder = find_ladder(groups)
    assert abs(groups.energies.mean() - 4.5) < 4 * math.sqrt(4.5 / 2000)
    assert ladder.tilts == sorted(ladder.tilts)
    assert ladder.tilts[-1] == 1.0
    assert 0.6 < groups.acceptance < 0.95


@pytest.mark.parametrize(("n", "n_groups"), [(1, 1), (64, 2), (70, 3)])
def test_exactly_n_structures_come_in_whole_groups(n, n_groups):
    ensemble = anneal(SYSTEM, n, batch_size=40, **POOR)
    assert len(ensemble) == n
    assert ensemble.n_groups == n_groups
    for group in range(n_groups):
        assert len(ensemble.log_weights[ensemble.groups == group].unique()) == 1
    torch.testing.assert_close(ensemble.energies, WELL.energy(ensemble.positions).double())
    assert 1 <= ensemble.info["n_ancestors"] <= n


def test_the_seed_decides_everything_and_progress_ends_complete():
    seen = []
    first = anneal(SYSTEM, 40, 3, progress=lambda *counts: seen.append(counts), **POOR)
    again, other = anneal(SYSTEM, 40, 3, **POOR), anneal(SYSTEM, 40, 4, **POOR)
    assert torch.equal(first.positions, again.positions)
    assert torch.equal(first.log_weights, again.log_weights)
    assert not torch.equal(first.positions, other.positions)
    assert seen == sorted(seen)
    assert seen[-1] == (40, 40)


def test_smoothing_keeps_what_grows_evenly():
    even = [1.1**k for k in range(20)]
    assert smoothed(even)[3:-3] == pytest.approx(even[3:-3])
    assert smoothed([0.5]) == pytest.approx([0.5])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"n": 0}, "n is 0"),
        ({"n_per_group": 0}, "n_per_group is 0"),
        ({"cess": 1.0}, "cess is 1.0"),
        ({"n_steps": 0}, "n_steps is 0"),
        ({"n_leapfrog": 0}, "n_leapfrog is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"target": "lj31"}, "did you mean 'lj13'"),
    ],
)
def test_bad_settings_are_refused(settings, expected):
    with pytest.raises(ValueError, match=f"(?i){expected}"):
        anneal(**{"target": SYSTEM, "n": 10, **settings})


def test_a_potential_without_finite_rewards_is_refused():
    nowhere = CallablePotential(lambda x: x.sum(dim=(1, 2)) * math.nan, 3)
    with pytest.raises(ValueError, match="0 of 128 rewards are finite"):
        anneal(System("nowhere", nowhere), 10)
