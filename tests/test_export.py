"""Written files open in mdtraj and give back the same coordinates."""

import mdtraj
import numpy as np
import pytest
import torch

from boltztilt.export import cluster_topology, to_nanometres, write_topology, write_trajectory
from boltztilt.systems.system import load_system

ROUNDING_IN_NM = {".dcd": 1e-6, ".xtc": 0.5e-3 + 1e-6, ".pdb": 0.5e-4 + 1e-6}


@pytest.mark.parametrize("suffix", ROUNDING_IN_NM)
@pytest.mark.parametrize("name", ["lj13", "lj55", "dw4"])
def test_coordinates_come_back(tmp_path, generator, name, suffix):
    system = load_system(name)
    positions = system.base.sample(5, generator)
    path = write_trajectory(tmp_path / f"out{suffix}", positions, system)
    topology = write_topology(tmp_path / "topology.pdb", system, positions)
    back = mdtraj.load(str(path), top=str(topology))
    expected = system.nm_per_length * positions.numpy()
    deviation = np.abs(back.xyz[:, :, : system.n_dims] - expected).max()
    assert deviation < ROUNDING_IN_NM[suffix]
    assert (back.xyz[:, :, system.n_dims :] == 0).all()


def test_topology_comes_back_as_unbonded_argon(tmp_path, generator):
    system = load_system("lj13")
    positions = system.base.sample(3, generator)
    topology = mdtraj.load(str(write_topology(tmp_path / "top.pdb", system, positions)))
    assert [atom.element.symbol for atom in topology.topology.atoms] == ["Ar"] * 13
    assert topology.topology.n_residues == 13
    assert topology.topology.n_bonds == 0
    deviation = np.abs(topology.xyz[0] - to_nanometres(positions, 0.382)[0]).max()
    assert deviation < ROUNDING_IN_NM[".pdb"]


def test_pair_at_its_minimum_is_written_one_argon_diameter_apart():
    pair = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
    nm = to_nanometres(pair, load_system("lj13").nm_per_length)
    assert np.linalg.norm(nm[0, 0] - nm[0, 1]) == pytest.approx(0.382)


def test_unknown_suffix_is_refused(tmp_path, generator):
    system = load_system("lj13")
    with pytest.raises(ValueError, match=r"\.dcd, \.xtc, \.pdb"):
        write_trajectory(tmp_path / "out.xyz", system.base.sample(1, generator), system)


def test_nonfinite_positions_are_counted_and_nothing_is_written(tmp_path, generator):
    system = load_system("lj13")
    positions = system.base.sample(4, generator)
    positions[1, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="1 of 4 configurations"):
        write_trajectory(tmp_path / "out.dcd", positions, system)
    assert list(tmp_path.iterdir()) == []


def test_unknown_element_is_refused():
    with pytest.raises(ValueError, match="'Xx' is not the symbol"):
        cluster_topology(3, "Xx")


def test_four_dimensions_are_refused():
    with pytest.raises(ValueError, match="at most 3 dimensions"):
        to_nanometres(torch.zeros(1, 2, 4), 1.0)


@pytest.mark.parametrize("suffix", [".dcd", ".xtc"])
def test_paths_need_not_be_ascii(tmp_path, generator, suffix):
    system = load_system("dw4")
    positions = system.base.sample(3, generator)
    path = write_trajectory(tmp_path / f"Müller{suffix}", positions, system)
    plain = write_trajectory(tmp_path / f"plain{suffix}", positions, system)
    assert path.read_bytes() == plain.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2
