"""Ensembles against importance sampling between Gaussians, where everything has a closed form."""

import math
from dataclasses import replace

import pytest
import torch
from springs import (
    DOF,
    ESS,
    LOG_Z,
    SPRING,
    STIFFNESS,
    VARIANCE,
    grouped_sample,
    importance_sample,
    spring_energy,
)

from boltztilt.energy import CallablePotential
from boltztilt.sampling.ensemble import Ensemble
from boltztilt.sampling.mcmc import hmc
from boltztilt.sampling.refinement import refinement
from boltztilt.systems.system import System, load_system


def test_weights_and_free_energy_agree_with_closed_forms():
    ensemble = importance_sample(20_000, 0)
    assert abs(ensemble.ess - ESS) < 0.015
    assert abs(ensemble.log_z.value - LOG_Z) < 3.5 * ensemble.log_z.error
    gap = 0.5 * DOF * (STIFFNESS - 1 - math.log(STIFFNESS))
    assert abs(ensemble.elbo.value - (LOG_Z - gap)) < 3.5 * ensemble.elbo.error
    assert abs(ensemble.mean_energy().value - DOF / 2) < 3.5 * ensemble.mean_energy().error
    raw = ensemble.mean_energy(weighted=False)
    assert abs(raw.value - STIFFNESS * DOF / 2) < 3.5 * raw.error


def test_independent_structures_are_no_more_than_their_ancestors():
    """Groups that agree by accident do not make structures of one descent independent."""
    ensemble = importance_sample(1000, 0)
    ensemble.groups = torch.arange(1000) // 10
    assert ensemble.n_independent > 50
    ensemble.info["n_ancestors"] = 20
    assert ensemble.n_independent == 20


def test_errors_are_the_spread_over_independent_samples():
    ensembles = [importance_sample(400, seed) for seed in range(120)]
    truths = {"log_z": LOG_Z, "energy": DOF / 2}
    estimates = {
        "log_z": [ensemble.log_z for ensemble in ensembles],
        "energy": [ensemble.mean(spring_energy, n_bootstrap=50) for ensemble in ensembles],
    }
    for name, truth in truths.items():
        z = torch.tensor([(e.value - truth) / e.error for e in estimates[name]])
        assert abs(z.mean()) < 0.4, name  # the ratio and the log are biased by O(1/N)
        assert 0.8 < z.std() < 1.3, name


def test_mean_takes_any_observable_and_rejects_wrong_shapes():
    ensemble = importance_sample(20_000, 1)
    first = ensemble.mean(lambda x: x[:, 0, 0].square())
    assert abs(first.value - VARIANCE * 2 / 3) < 3.5 * first.error
    with pytest.raises(ValueError, match="one number for each of the 20000"):
        ensemble.mean(lambda x: x.sum(dim=2))


def test_structures_without_finite_energy_get_zero_weight():
    ensemble = importance_sample(1000, 2)
    ensemble.energies[:3] = torch.tensor([math.inf, math.nan, math.inf])
    assert (ensemble.weights[:3] == 0).all()
    assert math.isclose(float(ensemble.weights.sum()), 1.0)
    assert math.isfinite(ensemble.mean_energy().value)
    report = ensemble.report()
    assert report["n_nonfinite"] == 3
    assert math.isinf(report["energy_raw"].value) or math.isnan(report["energy_raw"].value)
    assert math.isclose(
        report["energy_median_raw"], float(ensemble.energies[3:].median()), abs_tol=0.1
    )
    ensemble.energies[:] = math.inf
    with pytest.raises(ValueError, match="none of the 1000 structures"):
        _ = ensemble.weights


def test_without_density_weights_are_refused_and_plain_means_are_not():
    ensemble = importance_sample(100, 3, with_density=False)
    with pytest.raises(ValueError, match="with_density=True"):
        _ = ensemble.log_z
    assert math.isfinite(ensemble.mean_energy(weighted=False).value)
    assert "ess" not in ensemble.report()


def test_resampling_keeps_each_structure_in_proportion_to_its_weight():
    ensemble = importance_sample(500, 4)
    drawn = ensemble.resample(5000, seed=1)
    counts = torch.zeros(500, dtype=torch.float64)
    for energy in drawn.energies:
        counts[ensemble.energies == energy] += 1
    expected = 5000 * ensemble.weights
    assert ((counts - expected).abs() < 1 + 1e-9).all()
    assert drawn.info["n_distinct"] == drawn.n_groups == int((counts > 0).sum())
    assert drawn.log_density is None


def test_errors_after_resampling_are_those_of_distinct_structures():
    """Also after the copies have moved apart."""
    means, errors = [], []
    for seed in range(40):
        ensemble = importance_sample(300, seed)
        drawn = ensemble.resample(seed=seed)
        estimate = drawn.mean(lambda x: x[:, 0, 0] ** 2, weighted=False)
        means.append(estimate.value)
        errors.append(estimate.error)
    spread = float(torch.tensor(means).std())
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.3)
    assert drawn.refine(3).report()["n_groups"] == drawn.info["n_distinct"]


def test_refining_reaches_the_target_and_counts_energies():
    ensemble = importance_sample(4000, 5, with_density=False)
    refined = ensemble.refine(100, seed=0, step_size=0.4)
    energy = refined.mean_energy(weighted=False)
    assert abs(energy.value - DOF / 2) < 3.5 * energy.error
    assert refined.info["n_energy"] == 4000 + (100 + 5) * 4000  # each stage asks where it begins
    torch.testing.assert_close(refined.energies, spring_energy(refined.positions).double())


def test_acceptance_of_refining_is_the_mean_over_all_trajectories(monkeypatch):
    calls = []

    def recorded(*arguments, scale):
        state = hmc(*arguments, scale=scale)
        calls.append((state.acceptance, arguments[2] * len(arguments[1])))
        return state

    monkeypatch.setattr("boltztilt.sampling.refinement.hmc", recorded)
    refined = importance_sample(40, 5).refine(100, step_size=0.8, batch_size=30)
    accepted = sum(acceptance * number for acceptance, number in calls)
    n_trajectories = sum(number for _, number in calls)
    assert len(calls) == 2 * len(refinement(100))
    assert refined.info["refine_acceptance"] == pytest.approx(accepted / n_trajectories)
    assert len({round(acceptance, 3) for acceptance, _ in calls}) > 1


def test_joining_shards_concatenates_and_adds_costs():
    shards = [importance_sample(100, seed) for seed in (1, 2)]
    joined = Ensemble.join(shards)
    assert len(joined) == 200
    assert joined.info == {"seed": [1, 2], "n_steps": 20, "n_energy": 200, "wall_time": 1.0}
    both = torch.cat([shard.log_weights for shard in shards])
    assert torch.equal(joined.log_weights, both)
    with pytest.raises(ValueError, match="with and without"):
        Ensemble.join([shards[0], importance_sample(10, 3, with_density=False)])
    with pytest.raises(ValueError, match="no ensembles"):
        Ensemble.join([])
    with pytest.raises(ValueError, match=r"same seed 2: .* a seed of its own"):
        Ensemble.join([joined, importance_sample(50, 2)])


def test_errors_over_groups_are_honest_where_errors_over_structures_are_not():
    ensembles = [grouped_sample(200, seed) for seed in range(80)]
    naive = [replace(ensemble, groups=None) for ensemble in ensembles]
    for truth, estimate in ((LOG_Z, "log_z"), (DOF / 2, "mean_energy")):
        scores = []
        for each in (ensembles, naive):
            values = [getattr(ensemble, estimate) for ensemble in each]
            values = [value() if callable(value) else value for value in values]
            scores.append(torch.tensor([(v.value - truth) / v.error for v in values]).std())
        assert 0.75 < scores[0] < 1.3, estimate
        assert scores[1] / scores[0] == pytest.approx(math.sqrt(5), rel=0.15)


def test_independent_structures_are_counted_by_the_variance_between_groups():
    # var U / E[(w/Z)² (U - <U>)²], by Gaussian integrals
    ratio = STIFFNESS / (2 * STIFFNESS - 1)
    share = ESS / (ratio**2 + (1 - ratio) ** 2 * DOF / 2)
    ensemble = grouped_sample(1000, 0)
    alone = replace(ensemble, groups=None, info={})
    assert ensemble.n_effective == pytest.approx(alone.n_effective)  # blind to repetitions
    assert ensemble.n_independent == pytest.approx(1000 * share, rel=0.25)
    assert alone.n_independent == pytest.approx(5000 * share, rel=0.25)
    single = replace(ensemble, groups=torch.zeros(5000, dtype=torch.int64))
    assert math.isnan(single.n_independent)
    assert math.isnan(single.mean_energy().error)


def test_path_weights_take_the_place_of_a_density():
    ensemble = grouped_sample(100, 1)
    assert torch.equal(ensemble.log_weights, ensemble.path_log_weights)
    ensemble.energies[:5] = math.nan
    assert (ensemble.weights[:5] == 0).all()
    assert ensemble.n_groups == 100
    drawn = ensemble.resample(50, seed=0)
    assert not drawn.has_weights
    assert set(drawn.groups.tolist()) <= set(range(1, 100))
    assert torch.equal(drawn.refine(1).groups, drawn.groups)
    with pytest.raises(ValueError, match="give one of them"):
        replace(ensemble, log_density=torch.zeros(500))


def test_groups_of_joined_ensembles_stay_apart():
    joined = Ensemble.join([grouped_sample(10, 1), grouped_sample(20, 2)])
    assert joined.n_groups == 30
    assert joined.info == {"seed": [1, 2], "n_ancestors": 30}
    with pytest.raises(ValueError, match="with and without"):
        Ensemble.join([grouped_sample(10, 1), importance_sample(10, 3)])


def test_mismatched_sizes_are_refused():
    with pytest.raises(ValueError, match="expected"):
        Ensemble(torch.zeros(2, 4, 3), torch.zeros(2), None, SPRING)
    with pytest.raises(ValueError, match="log_density"):
        Ensemble(torch.zeros(2, 3, 3), torch.zeros(2), torch.zeros(3), SPRING)


def both_hands(system, weights):
    """Four structures of the aldp, two of them reflected, and their original images."""
    generator = torch.Generator().manual_seed(0)
    frames = system.molecule.structure + 0.005 * torch.randn(4, 22, 3, generator=generator)
    given = frames * torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None, None]
    given_weights = {"log_density": None, weights: torch.arange(4.0)}
    energies = system.potential.energy(given)
    return frames, Ensemble(given, energies, system=system, info={"seed": 3}, **given_weights)


@pytest.mark.parametrize("weights", ["log_density", "path_log_weights"])
def test_one_hand_has_twice_the_density_and_half_of_z(weights, aldp):
    frames, ensemble = both_hands(aldp, weights)
    one = ensemble.unmirrored()
    assert torch.equal(one.positions, frames)
    assert torch.equal(one.energies, ensemble.energies)
    assert one.info["seed"] == 3
    share = one.info["mirrored"]
    assert share.value == 0.5
    assert share.error == pytest.approx(0.5 / math.sqrt(4), rel=0.3)
    shift = math.log(2) if weights == "log_density" else -math.log(2)
    torch.testing.assert_close(getattr(one, weights), getattr(ensemble, weights) + shift)
    torch.testing.assert_close(one.log_weights, ensemble.log_weights - math.log(2))
    assert one.log_z.value == pytest.approx(ensemble.log_z.value - math.log(2))
    torch.testing.assert_close(one.weights, ensemble.weights)
    assert one.unmirrored() is one


def test_joined_ensembles_of_one_hand_are_those_of_one_hand(aldp, tmp_path):
    whole = both_hands(aldp, "log_density")[1]
    parts = [
        Ensemble(whole.positions[part], whole.energies[part], whole.log_density[part], aldp)
        for part in ([0, 2], [1, 3, 0, 0])
    ]
    one_handed = [part.unmirrored() for part in parts]
    one_handed[1].save(tmp_path / "part.npz")
    loaded = Ensemble.load(tmp_path / "part.npz")
    assert loaded.info["mirrored"] == one_handed[1].info["mirrored"]
    joined = Ensemble.join([one_handed[0], loaded])
    assert joined.unmirrored() is joined
    share, (first, second) = joined.info["mirrored"], (each.info["mirrored"] for each in one_handed)
    assert share.value == pytest.approx(2 / 6)
    assert share.error == pytest.approx(math.hypot(2 * first.error, 4 * second.error) / 6)
    with pytest.raises(ValueError, match=r"`unmirrored\(\)` of each"):
        Ensemble.join([one_handed[0], parts[1]])


def test_reflected_structures_keep_their_energy(aldp):
    one = both_hands(aldp, "log_density")[1].unmirrored()
    again = aldp.potential.energy(one.positions).double()
    torch.testing.assert_close(again, one.energies, rtol=1e-5, atol=1e-3)


def test_systems_without_hands_stay_as_they_are():
    ensemble = importance_sample(5, 0)
    assert ensemble.unmirrored() is ensemble
    chiral = CallablePotential(lambda x: torch.linalg.det(x[:, :3]), 22)
    molecule = load_system("aldp").molecule
    told_apart = System("chiral", chiral, molecule=molecule, base_kind="bonds", base_std=0.1)
    assert not told_apart.one_handed
    positions = torch.stack([molecule.structure, -molecule.structure])
    ensemble = Ensemble(positions, torch.zeros(2), None, told_apart)
    assert ensemble.unmirrored() is ensemble


def test_averages_of_resampled_structures_are_plain_and_those_of_refined_ones_explained():
    ensemble = importance_sample(100, 0)
    resampled = ensemble.resample(50, seed=1)
    assert resampled.mean_energy() == resampled.mean_energy(weighted=False)
    assert resampled.mean(spring_energy).value == pytest.approx(resampled.mean_energy().value)
    assert resampled.refine(3).mean_energy().error > 0
    with pytest.raises(ValueError, match=r"take averages before refine\(\)"):
        ensemble.refine(3).mean_energy()
    with pytest.raises(ValueError, match=r"with_density=True"):
        importance_sample(10, 0, with_density=False).mean_energy()


def test_joined_resampled_structures_keep_plain_averages():
    parts = [importance_sample(n, n).resample(20, seed=n) for n in (50, 80)]
    joined = Ensemble.join(parts)
    assert joined.mean_energy().value == pytest.approx(float(joined.energies.mean()))
    assert joined.info["resampled_from"] == 130
    assert joined.info["n_distinct"] == sum(part.info["n_distinct"] for part in parts)


def test_observables_may_return_arrays():
    ensemble = importance_sample(50, 0)
    expected = ensemble.mean(lambda x: x[:, 0, 0])
    assert ensemble.mean(lambda x: x.numpy()[:, 0, 0]) == expected


def test_median_of_an_even_number_is_between_the_middle_two():
    four = importance_sample(4, 0)
    four.energies[:] = torch.tensor([5.0, 1.0, math.inf, 2.0])
    assert four.median_energy == 3.5
