"""References: equilibrated by their own checks, and kept in files."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scores import z_score

from boltztilt.analysis.equilibration import failed_checks
from boltztilt.analysis.metrics import short_pair_occupancy
from boltztilt.analysis.reference import Reference, make_reference
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.sampling.ensemble import Ensemble
from boltztilt.sampling.estimate import Estimate
from boltztilt.systems.system import System, load_system

WELL = System("well", Harmonic(3, stiffness=4.0))


@pytest.fixture(scope="module")
def well():
    return make_reference(WELL, n_samples=2000, seed=1, n_chains=200, n_between=20)


def test_harmonic_reference_passes_its_checks(well):
    assert len(well) == 2000
    assert abs(z_score(well.checks["energy"], 3.0)) < 3.5
    assert abs(z_score(well.checks["virial"], 1.0)) < 3.5
    assert abs(z_score(well.checks["configurational_temperature"], 1.0)) < 3.5
    assert abs(well.checks["drift"]) < 3.5
    assert all(value < 1.05 for value in well.checks["r_hat"].values())
    torch.testing.assert_close(well.energies, WELL.potential.energy(well.positions).double())


def test_same_seed_same_reference(well):
    again = make_reference(WELL, n_samples=2000, seed=1, n_chains=200, n_between=20)
    assert torch.equal(again.positions, well.positions)


def test_progress_counts_up_to_its_total():
    seen = []
    make_reference(
        WELL, 40, n_chains=20, n_between=30, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_file_round_trip_keeps_samples_and_checks(well, tmp_path):
    path = well.save(tmp_path / "well.npz")
    loaded = Reference.load(path, WELL)
    assert torch.equal(loaded.positions, well.positions)
    assert loaded.checks == well.checks
    assert torch.equal(loaded.groups, well.groups)
    assert len(well.groups.unique()) == 200
    assert loaded.mean_energy() == well.checks["energy"]
    with pytest.raises(FileExistsError):
        well.save(path)
    with pytest.raises(ValueError, match="well"):
        Reference.load(path)


def test_checks_that_are_not_finite_survive_the_file(well, tmp_path):
    checks = {
        "virial": Estimate(1.0, math.nan),
        "drift": math.inf,
        "r_hat": {"energy": math.inf, "radius_of_gyration": 1.2},
    }
    stuck = dataclasses.replace(well, checks=checks)
    loaded = Reference.load(stuck.save(tmp_path / "stuck.npz"), WELL).checks
    assert math.isnan(loaded["virial"].error)
    assert {name: loaded[name] for name in ("drift", "r_hat")} == {
        name: checks[name] for name in ("drift", "r_hat")
    }
    words = failed_checks(loaded)
    assert [word.split()[0] for word in words] == ["virial", "mean", "r_hat", "r_hat"]


def test_foreign_samples_need_only_positions_and_the_same_convention(well, tmp_path):
    path = tmp_path / "foreign.npz"
    np.savez(path, positions=well.positions.numpy())
    assert torch.equal(Reference.load(path, WELL).energies, well.energies)
    np.savez(path, positions=well.positions.numpy(), energies=0.5 * well.energies.numpy())
    with pytest.raises(ValueError, match="another convention"):
        Reference.load(path, WELL)
    np.savez(path, positions=well.positions.numpy(), energies=well.energies.numpy()[:, None])
    with pytest.raises(ValueError, match=r"energies of shape \(2000, 1\) for 2000 structures"):
        Reference.load(path, WELL)
    np.savez(path, positions=well.positions.numpy(), groups=np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match=r"groups of shape \(3,\) for 2000 structures"):
        Reference.load(path, WELL)
    np.savez(path, positions=np.zeros((5, 4, 3)))
    with pytest.raises(ValueError, match=r"needs \(batch, 3, 3\)"):
        Reference.load(path, WELL)


def test_structures_of_a_sampler_are_no_reference_unless_resampled(well, tmp_path):
    drawn = Ensemble(well.positions, well.energies, -well.energies, WELL, {"seed": 0})
    for number, ensemble in enumerate((drawn, drawn.refine(5))):
        path = tmp_path / f"{number}.npz"
        ensemble.save(path)
        with pytest.raises(ValueError, match="structures of a sampler, not reference samples"):
            Reference.load(path, WELL)
    drawn.resample(500).save(tmp_path / "resampled.npz")
    resampled = Reference.load(tmp_path / "resampled.npz", WELL)
    assert len(resampled) == 500
    assert resampled.groups is not None


def test_impossible_sizes_are_refused(tmp_path, well):
    with pytest.raises(ValueError, match="at least 4"):
        make_reference(WELL, 3)
    with pytest.raises(ValueError, match="two samples"):
        make_reference(WELL, 10, n_chains=6)
    with pytest.raises(ValueError, match=r"\.npz"):
        well.save(tmp_path / "well.gro")


@pytest.mark.slow
def test_lj13_reference_has_the_published_moments():
    reference = make_reference(load_system("lj13"), n_samples=10_000, seed=0)
    energy = reference.checks["energy"]
    assert abs(energy.value + 43.06) < 3.5 * math.hypot(energy.error, 0.05)
    assert reference.checks["energy_sd"] == pytest.approx(7.06, abs=0.25)
    assert abs(z_score(reference.checks["virial"], 1.0)) < 3.5
    assert abs(z_score(reference.checks["configurational_temperature"], 1.0)) < 3.5


@pytest.mark.slow
def test_dw4_reference_mixes_between_its_modes():
    reference = make_reference(load_system("dw4"), n_samples=10_000, seed=0)
    energy = reference.checks["energy"]
    assert abs(energy.value + 22.553) < 3.5 * energy.error
    assert reference.checks["r_hat"]["short_pairs"] < 1.02
    occupancy = short_pair_occupancy(reference.positions)
    for count, fraction in {2: 0.515, 3: 0.034, 4: 0.410, 5: 0.039}.items():
        assert abs(occupancy[count].value - fraction) < 4 * occupancy[count].error


def test_samples_without_an_energy_are_refused(well, tmp_path):
    positions = well.positions.clone()
    positions[3] = math.nan
    np.savez(tmp_path / "nan.npz", positions=positions.numpy(), energies=well.energies.numpy())
    with pytest.raises(ValueError, match="1 of 2000 structures have no finite energy by well"):
        Reference.load(tmp_path / "nan.npz", WELL)
    energies = well.energies.clone()
    energies[5] = math.inf
    np.savez(tmp_path / "inf.npz", positions=well.positions.numpy(), energies=energies.numpy())
    with pytest.raises(ValueError, match="1 of 2000 energies differ from well's"):
        Reference.load(tmp_path / "inf.npz", WELL)


def test_samples_of_a_handed_molecule_are_given_in_one_hand(aldp, tmp_path):
    frames = aldp.molecule.structure.repeat(4, 1, 1)
    frames[1::2] *= -1
    np.savez(tmp_path / "both.npz", positions=frames.numpy())
    loaded = Reference.load(tmp_path / "both.npz", aldp)
    assert torch.equal(loaded.positions, frames.abs() * frames[:1].sign())
    torch.testing.assert_close(loaded.energies, aldp.potential.energy(frames).double())
