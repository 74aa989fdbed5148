"""Ensembles against importance sampling between Gaussians, where everything has a closed form."""

import json
import math
from dataclasses import replace

import mdtraj
import numpy as np
import pytest
import torch

from boltztilt.energy import CallablePotential
from boltztilt.sampling.base import Gaussian
from boltztilt.sampling.ensemble import Ensemble
from boltztilt.sampling.ensemble_files import check_output
from boltztilt.sampling.estimate import pareto_k
from boltztilt.sampling.mcmc import hmc
from boltztilt.sampling.refinement import refinement
from boltztilt.systems.system import System, load_system

STIFFNESS = 1.5
DOF = 6
VARIANCE = 1 / STIFFNESS
LOG_Z = 0.5 * DOF * math.log(2 * math.pi * VARIANCE)
# Kish's ESS of N(0, v) from N(0, 1) in d dimensions: (v (2 - v))^(d/2).
ESS = (VARIANCE * (2 - VARIANCE)) ** (DOF / 2)


def spring_energy(positions):
    return 0.5 * STIFFNESS * positions.square().sum(dim=(1, 2))


SPRING = System("spring", CallablePotential(spring_energy, 3, 3, mirror_symmetric=True))


def importance_sample(n, seed, with_density=True):
    base = Gaussian(3)
    positions = base.sample(n, torch.Generator().manual_seed(seed))
    log_density = base.log_density(positions) if with_density else None
    info = {"seed": seed, "n_steps": 20, "n_energy": n, "wall_time": 0.5}
    return Ensemble(positions, spring_energy(positions), log_density, SPRING, info)


def test_weights_and_free_energy_agree_with_closed_forms():
    ensemble = importance_sample(20_000, 0)
    assert abs(ensemble.ess - ESS) < 0.015
    assert abs(ensemble.log_z.value - LOG_Z) < 3.5 * ensemble.log_z.error
    gap = 0.5 * DOF * (STIFFNESS - 1 - math.log(STIFFNESS))
    assert abs(ensemble.elbo.value - (LOG_Z - gap)) < 3.5 * ensemble.elbo.error
    assert abs(ensemble.mean_energy().value - DOF / 2) < 3.5 * ensemble.mean_energy().error
    raw = ensemble.mean_energy(weighted=False)
    assert abs(raw.value - STIFFNESS * DOF / 2) < 3.5 * raw.error


def test_cautions_name_weights_and_groups_that_rest_on_too_little():
    ensemble = importance_sample(1000, 0)
    assert ensemble.cautions == []
    assert "cautions" not in ensemble.report()
    one = replace(ensemble, log_density=ensemble.log_density.clone())
    one.log_density[3] -= 20.0
    (caution,) = one.cautions
    assert caution.startswith("the weights rest on about 1.0 of 1000 structures")
    assert one.report()["cautions"] == [caution]
    grouped = replace(ensemble, groups=torch.arange(1000) // 250)
    (caution,) = grouped.cautions
    assert caution.startswith("errors are those over 4 groups")
    assert importance_sample(3, 0, with_density=False).cautions == []


@pytest.mark.parametrize("k", [0.3, 0.7, 1.2])
def test_pareto_k_is_the_exponent_of_the_tail(k, generator):
    """u^-k has excesses of that shape; the error of a fit to m of them is (1 + k) / sqrt(m)."""
    n = 40_000
    log_weights = -k * torch.rand(n, generator=generator, dtype=torch.float64).log()
    n_tail = 3 * math.sqrt(n)
    assert abs(pareto_k(log_weights + 300) - k) < 3.5 * (1 + k) / math.sqrt(n_tail)


def test_pareto_k_needs_weights_that_differ():
    assert math.isnan(pareto_k(torch.full((500,), 3.0, dtype=torch.float64)))
    assert math.isnan(pareto_k(torch.linspace(0, 1, 99, dtype=torch.float64)))
    absent = torch.linspace(0, 1, 150, dtype=torch.float64).log()
    absent[:60] = -math.inf
    assert math.isnan(pareto_k(absent))


def test_a_heavy_tail_of_the_weights_is_a_caution(generator):
    ensemble = importance_sample(1000, 0)
    assert ensemble.report()["pareto_k"] < 0.7
    log_weights = -1.0 * torch.rand(1000, generator=generator, dtype=torch.float64).log()
    heavy = replace(ensemble, log_density=-ensemble.energies - log_weights)
    assert heavy.n_effective > 10
    (caution,) = heavy.cautions
    assert caution.startswith("the weights have a heavy tail (Pareto k = ")
    assert "pareto_k" not in replace(heavy, groups=torch.arange(1000) // 10).report()


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


def test_numbers_are_kept_where_a_trajectory_cannot_be_written(tmp_path):
    ensemble = importance_sample(5, 0)
    ensemble.positions[2, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"1 of 5 configurations.*all numbers are in .*out.npz"):
        ensemble.save(tmp_path / "out.dcd")
    assert len(Ensemble.load(tmp_path / "out.npz", SPRING)) == 5
    assert not (tmp_path / "out.dcd").exists()


def test_structures_without_any_weight_can_be_saved(tmp_path):
    ensemble = importance_sample(5, 0)
    ensemble.energies[:] = math.inf
    assert list(ensemble.views) == ["raw"]
    ensemble.save(tmp_path / "out.npz")
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert "ess" not in report
    assert "none of the 5 structures" in report["cautions"][0]


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


def grouped_sample(n_groups, seed, n_per_group=5):
    """Groups of structures that hold one independent draw each, repeated; all of weight 1."""
    single = importance_sample(n_groups, seed)
    groups = torch.arange(n_groups).repeat_interleave(n_per_group)
    return Ensemble(
        single.positions[groups],
        single.energies[groups],
        None,
        SPRING,
        {"seed": seed, "n_ancestors": n_groups},
        path_log_weights=single.log_weights[groups],
        groups=groups,
    )


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


def test_npz_round_trip_is_exact(tmp_path):
    ensemble = importance_sample(50, 6)
    paths = ensemble.save(tmp_path / "spring.npz")
    assert [path.name for path in paths] == ["spring.npz", "spring.report.json"]
    with pytest.raises(ValueError, match=r"structures of 'spring'.*system=\.\.\."):
        Ensemble.load(paths[0])
    other = System("other", SPRING.potential)
    with pytest.raises(ValueError, match=f"holds structures of '{SPRING.name}', not of 'other'"):
        Ensemble.load(paths[0], other)
    loaded = Ensemble.load(paths[0], SPRING)
    assert torch.equal(loaded.positions, ensemble.positions)
    assert torch.equal(loaded.log_weights, ensemble.log_weights)
    assert loaded.info == ensemble.info
    report = json.loads(paths[1].read_text())
    assert report["log_z"]["value"] == pytest.approx(ensemble.log_z.value)
    assert report["n"] == 50


def test_npz_round_trip_keeps_path_weights_and_groups(tmp_path):
    ensemble = grouped_sample(20, 6)
    paths = ensemble.save(tmp_path / "spring.npz")
    loaded = Ensemble.load(paths[0], SPRING)
    assert loaded.log_density is None
    assert torch.equal(loaded.path_log_weights, ensemble.path_log_weights)
    assert torch.equal(loaded.groups, ensemble.groups)
    assert loaded.log_z == ensemble.log_z
    report = json.loads(paths[1].read_text())
    assert report["n_groups"] == 20
    assert report["n_independent"] == pytest.approx(ensemble.n_independent)


@pytest.mark.parametrize("suffix", [".dcd", ".xtc", ".pdb"])
@pytest.mark.parametrize("name", ["lj13", "dw4"])
def test_trajectories_open_in_mdtraj_with_the_same_coordinates(tmp_path, suffix, name):
    system = load_system(name)
    positions = system.base.sample(7, torch.Generator().manual_seed(0))
    ensemble = Ensemble(positions, system.potential.energy(positions), None, system)
    paths = ensemble.save(tmp_path / f"{name}{suffix}")
    assert all(path.exists() for path in paths)
    topology = paths[0] if suffix == ".pdb" else tmp_path / f"{name}.pdb"
    trajectory = mdtraj.load(str(paths[0]), top=str(topology))
    read = trajectory.xyz[:, :, : system.n_dims] / system.nm_per_length
    resolution = 1e-6 if suffix == ".dcd" else 6e-4  # nm; xtc and pdb round
    np.testing.assert_allclose(
        read, positions.numpy(), atol=resolution / system.nm_per_length, rtol=1e-5
    )
    assert torch.equal(Ensemble.load(tmp_path / f"{name}.npz").positions, positions)


def test_existing_files_are_kept_unless_overwriting(tmp_path):
    ensemble = importance_sample(5, 7)
    ensemble.save(tmp_path / "a.npz")
    before = (tmp_path / "a.npz").read_bytes()
    with pytest.raises(FileExistsError, match=r"a\.npz"):
        importance_sample(5, 8).save(tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == before
    importance_sample(5, 8).save(tmp_path / "a.npz", overwrite=True)
    assert (tmp_path / "a.npz").read_bytes() != before


def test_unknown_suffixes_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.dcd"):
        check_output(tmp_path / "a.xyz")
    with pytest.raises(FileNotFoundError, match="folder"):
        check_output(tmp_path / "missing" / "a.dcd")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(ValueError, match=r"not an \.npz file"):
        Ensemble.load(tmp_path / "text.npz")
    np.savez(tmp_path / "foreign.npz", positions=np.zeros(3))
    with pytest.raises(ValueError, match="energies"):
        Ensemble.load(tmp_path / "foreign.npz")


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
