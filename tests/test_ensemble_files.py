"""Ensembles as files: exact round trips, trajectories that open elsewhere, refusals."""

import json
import math

import mdtraj
import numpy as np
import pytest
import torch
from springs import SPRING, grouped_sample, importance_sample, spring_energy

from boltztilt.energy import CallablePotential
from boltztilt.sampling.ensemble import Ensemble
from boltztilt.sampling.ensemble_files import check_output
from boltztilt.systems.system import System, load_system


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


def test_structures_of_another_energy_of_the_same_name_are_refused(tmp_path):
    importance_sample(5, 0).save(tmp_path / "out.npz")
    stiffer = CallablePotential(lambda x: 2 * spring_energy(x), 3)
    with pytest.raises(ValueError, match="4 of 4 energies differ from spring's"):
        Ensemble.load(tmp_path / "out.npz", System("spring", stiffer))


@pytest.mark.parametrize("suffix", ["dcd", "xtc", "npz"])
def test_a_full_disk_is_told_by_the_name_of_the_file(small_disk, tmp_path, suffix):
    n = 2000 if suffix == "npz" else 370  # numbers of the latter are kept
    ensemble = importance_sample(n, 0, with_density=False)
    with pytest.raises(OSError, match=rf"cannot write .*out\.{suffix}: ") as told:
        ensemble.save(tmp_path / f"out.{suffix}")
    left = [path.name for path in tmp_path.iterdir()]
    if suffix == "npz":
        assert left == []
    else:
        assert set(left) == {"out.npz", "out.report.json"}
        assert "all numbers are in" in str(told.value)


def test_malformed_files_are_refused_for_what_they_are(tmp_path):
    path = tmp_path / "out.npz"
    importance_sample(6, 0).save(path)
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "energies": arrays["energies"][:3]})
    with pytest.raises(ValueError, match=r"given for 3 energies of spring"):
        Ensemble.load(path, SPRING)
    np.savez(path, **{**arrays, "positions": arrays["positions"][:, :2]})
    with pytest.raises(ValueError, match=r"expected \(6, 3, 3\)"):
        Ensemble.load(path, SPRING)
