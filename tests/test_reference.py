"""References: equilibrated by their own checks, and the checks catch what is not."""

import math

import numpy as np
import pytest
import torch

from boltztilt.analysis.metrics import short_pair_occupancy
from boltztilt.analysis.reference import (
    Reference,
    check_equilibration,
    drift,
    failed_checks,
    laplacian,
    make_reference,
    r_hat,
)
from boltztilt.energy import CallablePotential
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.sampling.estimate import Estimate
from boltztilt.systems.system import System, load_system

WELL = System("well", Harmonic(3, stiffness=4.0))


@pytest.fixture(scope="module")
def well():
    return make_reference(WELL, n_samples=2000, seed=1, n_chains=200, n_between=20)


def z_score(estimate, truth):
    return abs(estimate.value - truth) / estimate.error


def test_harmonic_reference_passes_its_checks(well):
    assert len(well) == 2000
    assert z_score(well.checks["energy"], 3.0) < 3.5
    assert z_score(well.checks["virial"], 1.0) < 3.5
    assert z_score(well.checks["configurational_temperature"], 1.0) < 3.5
    assert abs(well.checks["drift"]) < 3.5
    assert all(value < 1.05 for value in well.checks["r_hat"].values())
    torch.testing.assert_close(well.energies, WELL.potential.energy(well.positions).double())


def test_checks_catch_samples_at_the_wrong_temperature():
    generator = torch.Generator().manual_seed(2)
    hot = Harmonic(3, stiffness=3.0).sample(2000, generator)
    energies = WELL.potential.energy(hot).double()
    checks = check_equilibration(WELL, hot.reshape(200, 10, 3, 3), energies.reshape(200, 10))
    assert z_score(checks["virial"], 1.0) > 5
    assert z_score(checks["configurational_temperature"], 1.0) > 5


def test_failed_checks_are_named():
    good = {
        "virial": Estimate(1.01, 0.004),
        "configurational_temperature": Estimate(0.99, 0.01),
        "drift": -1.2,
        "r_hat": {"energy": 1.01},
    }
    assert failed_checks(good) == failed_checks({}) == []
    bad = {"virial": Estimate(1.05, 0.004), "drift": 7.0, "r_hat": {"short_pairs": 1.4}}
    words = failed_checks({**good, **bad})
    assert [word.split()[0] for word in words] == ["virial", "mean", "r_hat"]
    read = {"virial": Estimate(1.0, math.nan), "drift": None, "r_hat": {"energy": None}}
    words = failed_checks({**good, **read})  # infinite when they were written
    assert [word.split()[0] for word in words] == ["virial", "mean", "r_hat"]


def test_r_hat_is_one_for_independent_draws_and_large_for_stuck_chains():
    generator = torch.Generator().manual_seed(3)
    draws = torch.randn(500, 10, generator=generator, dtype=torch.float64)
    assert r_hat(draws) == pytest.approx(1.0, abs=0.02)
    modes = 3.0 * torch.randint(2, (500, 1), generator=generator)
    assert r_hat(draws + modes) > 1.5
    assert r_hat(modes.expand(500, 10).double()) == math.inf


def test_drift_is_in_standard_errors_over_chains(generator):
    values = torch.randn(400, 10, dtype=torch.float64, generator=generator)
    assert abs(drift(values)) < 3.5
    values[:, 5:] += 0.5
    expected = 0.5 / math.sqrt(2 / 5 / 400)
    assert drift(values) == pytest.approx(expected, rel=0.25)
    assert drift(torch.zeros(400, 10, dtype=torch.float64)) == 0.0
    assert drift(torch.arange(10, dtype=torch.float64).repeat(4, 1)) == math.inf


def test_laplacian_is_the_trace_of_the_hessian_on_the_subspace():
    positions = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(4)).double()

    def energy(x):
        return x.pow(4).sum(dim=(1, 2)) + (x[:, 0, 0] * x[:, 1, 0]).sin()

    def trace(x, projector):
        hessian = torch.autograd.functional.hessian(lambda y: energy(y[None])[0], x)
        return (projector @ hessian.reshape(6, 6)).trace()

    mean = torch.kron(torch.full((3, 3), 1 / 3), torch.eye(2)).double()
    for centered, projector in ((False, torch.eye(6).double()), (True, torch.eye(6) - mean)):
        potential = CallablePotential(energy, 3, 2, centered=centered)
        expected = torch.stack([trace(x, projector) for x in positions])
        torch.testing.assert_close(laplacian(potential, positions), expected)


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
    assert z_score(reference.checks["virial"], 1.0) < 3.5
    assert z_score(reference.checks["configurational_temperature"], 1.0) < 3.5


@pytest.mark.slow
def test_dw4_reference_mixes_between_its_modes():
    reference = make_reference(load_system("dw4"), n_samples=10_000, seed=0)
    energy = reference.checks["energy"]
    assert abs(energy.value + 22.553) < 3.5 * energy.error
    assert reference.checks["r_hat"]["short_pairs"] < 1.02
    occupancy = short_pair_occupancy(reference.positions)
    for count, fraction in {2: 0.515, 3: 0.034, 4: 0.410, 5: 0.039}.items():
        assert abs(occupancy[count].value - fraction) < 4 * occupancy[count].error
