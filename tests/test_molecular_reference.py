"""Reference samples of a molecule: exact moments, honest errors, and checks that object."""

import math

import jaxtyping
import pytest
import torch
from scores import z_score
from water import water

from boltztilt.analysis import molecular_reference
from boltztilt.analysis.dynamics import Langevin
from boltztilt.analysis.equilibration import failed_checks
from boltztilt.analysis.molecular_reference import (
    blocks,
    check_dynamics,
    chosen_starts,
    compare,
    correct,
    deviation,
    make_molecular_reference,
)
from boltztilt.analysis.reference import Reference
from boltztilt.analysis.tempered import temper
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.sampling.estimate import Estimate, weighted_mean
from boltztilt.systems.system import System, load_system

SHORT = Langevin(frame_interval=0.2, settling_time=0.5, friction=10.0)


@pytest.fixture(scope="module")
def tempered():
    return temper(water(), n_rounds=40, seed=2)


@pytest.fixture(scope="module")
def made(tempered):
    return make_molecular_reference(water(), tempered, 2000, seed=1, settings=SHORT)


def test_reference_has_the_exact_mean_energy_and_passes_its_checks(made):
    # three stiff harmonic degrees of freedom; the volume element adds less than 0.001 kT
    assert abs(z_score(made.checks["energy"], 1.5)) < 3.5
    assert made.checks["energy"].error < 0.06
    assert abs(z_score(made.checks["configurational_temperature"], 1.0)) < 3.5
    assert failed_checks(made.checks) == []
    assert made.info["correction_acceptance"] > 0.6
    energies = made.system.potential.energy(made.positions).double()
    torch.testing.assert_close(made.energies, energies, atol=1e-4, rtol=1e-4)


def test_replica_exchange_agrees(made, tempered):
    assert abs(z_score(tempered.averages["energy"], 1.5)) < 3.5
    assert abs(made.checks["tempering_deviation"]["energy"]) < 3.5
    assert made.info["tempering_exchanged"] > 0.5
    assert set(tempered.checks["drift"]) == set(tempered.checks["r_hat"]) == set(tempered.averages)
    assert made.checks["tempering_r_hat"]["energy"] < 1.2
    assert abs(made.checks["tempering_drift"]["energy"]) < 3.5


def test_starts_of_all_ladders_are_used_before_a_second_of_any():
    starts = torch.arange(24.0).reshape(4, 6, 1, 1).expand(4, 6, 1, 3)
    assert chosen_starts(starts, 100).shape[:2] == (4, 6)
    found = chosen_starts(starts, 11)[..., 0]
    assert found.tolist() == [[[4], [5]], [[10], [11]], [[16], [17]], [[22], [23]]]
    assert chosen_starts(starts, 3)[..., 0].tolist() == [[[5]], [[11]], [[17]]]


def test_replicas_of_one_ladder_count_as_one_chain(tempered, monkeypatch):
    """Frames that depend on their ladder alone: as many independent ones as there are ladders."""
    n_ladders, n_starts = tempered.starts.shape[:2]
    repeated = tempered.starts[:, :1].repeat_interleave(n_starts, dim=1).flatten(0, 1)
    monkeypatch.setattr(
        molecular_reference,
        "run_replicas",
        lambda source, starts, n_frames, *rest: repeated[:, None].repeat(1, n_frames, 1, 1),
    )
    monkeypatch.setattr(molecular_reference, "N_CORRECTIONS", 0)
    made = make_molecular_reference(water(), tempered, 2000, seed=1)
    assert made.info["n_replicas"] == n_ladders * n_starts
    assert made.info["n_frames"] == math.ceil(2000 / (n_ladders * n_starts))
    assert made.checks["independent"]["energy"] < 1.3 * n_ladders
    energy = weighted_mean(made.energies, groups=made.groups)
    sd = float(made.energies.std())
    assert energy.error == pytest.approx(sd / math.sqrt(n_ladders), rel=0.3)
    assert made.checks["r_hat"]["energy"] > 2


def test_drift_within_replicas_is_seen(made, generator):
    positions = made.positions[:800].reshape(20, 40, 3, 3)
    energies = torch.randn(20, 40, dtype=torch.float64, generator=generator)
    energies += torch.linspace(-1, 1, 8).repeat(5)  # five replicas of eight frames
    assert abs(check_dynamics(water(), positions, energies, 5)["drift"]) > 5
    assert abs(check_dynamics(water(), positions, energies)["drift"]) < 5


def test_virial_of_what_is_held_in_place_counts_the_centre():
    held = System("held", Harmonic(3, 2.0, centered=False), base_kind="isotropic")
    positions = held.potential.sample(4000, torch.Generator().manual_seed(0)).reshape(20, 200, 3, 3)
    energies = held.potential.energy(positions.flatten(0, 1)).reshape(20, 200)
    virial = check_dynamics(held, positions, energies.double())["virial"]
    assert abs(virial.value - 1) < 4 * virial.error < 0.1


def test_replica_exchange_of_another_system_is_refused(tempered):
    with pytest.raises(ValueError, match="other forces or another temperature"):
        make_molecular_reference(water(stretch=1.1), tempered, 100)


def test_correction_brings_bonds_of_another_energy_to_the_target(made, generator):
    stretched = water(stretch=1.02)
    frames = made.positions[:1000].reshape(4, 250, 3, 3)
    before = stretched.potential.energy(frames.flatten(0, 1)).mean()
    _, energies, _ = correct(stretched, frames, generator)
    assert float(before) > 1.8
    error = float(energies.std()) / math.sqrt(energies.numel())
    assert abs(float(energies.mean()) - 1.5) < 3.5 * error


def test_disagreement_is_named():
    first, second = Estimate(0.1, 0.01), Estimate(0.2, 0.01)
    assert deviation(first, second) == pytest.approx(-0.1 / math.hypot(0.01, 0.01))
    assert deviation(Estimate(0.0, math.nan), Estimate(0.02, 0.01)) == pytest.approx(-2.0)
    assert deviation(Estimate(0.0, math.nan), Estimate(0.0, 0.0)) == 0.0
    words = failed_checks({"tempering_deviation": {"alpha_L of ALA2": -7.0, "beta of ALA2": 1.0}})
    assert words == ["alpha L of ALA2 differs from replica exchange by -7.0 standard errors"]
    (words,) = failed_checks({"tempering_drift": {"alpha_R of ALA2": 4.0, "energy": -2.0}})
    assert words.startswith("alpha R of ALA2 drifts in replica exchange by +4.0 standard errors")


def test_blocks_keep_replicas_apart():
    values = torch.arange(2 * 45, dtype=torch.float64).reshape(2, 45)
    parts = blocks(values)
    assert parts.shape == (30, 3)
    assert torch.equal(parts[15], values[1, :3])


def test_file_round_trip_with_trajectory(made, tmp_path):
    import mdtraj

    path = made.save(tmp_path / "water.dcd")
    loaded = Reference.load(path, made.system)
    assert torch.equal(loaded.positions, made.positions)
    assert loaded.checks["averages"] == made.checks["averages"]
    trajectory = mdtraj.load(str(tmp_path / "water.dcd"), top=str(tmp_path / "water.pdb"))
    torch.testing.assert_close(torch.from_numpy(trajectory.xyz), made.positions)


def test_systems_without_openmm_and_impossible_sizes_are_refused(made, tempered):
    with pytest.raises(ValueError, match="lj13 is not a molecule"):
        make_molecular_reference(load_system("lj13"), tempered, 100)
    with pytest.raises(ValueError, match="at least 4"):
        make_molecular_reference(made.system, tempered, 3)
    with pytest.raises(ValueError, match="n_rounds is 3"):
        temper(made.system, n_rounds=3)


@pytest.mark.slow
def test_dipeptide_agrees_with_other_replica_exchange(monkeypatch):
    # a million energies: compiled on the way, and compiled code cannot check its types as it runs
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    system = load_system("aldp")
    made = make_molecular_reference(system, temper(system, 600, seed=5), 2000, seed=5)
    other = compare(made.checks["averages"], temper(system, 600, seed=6).averages)
    assert made.checks["energy_sd"] == pytest.approx(5.5, abs=0.3)
    assert abs(z_score(made.checks["configurational_temperature"], 1.0)) < 3.5
    assert all(abs(value) < 3.5 for value in other["tempering_deviation"].values())
