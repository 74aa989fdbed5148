"""Weights files: where they are found, what they must fit, and what is refused."""

import pytest
import torch
from safetensors.torch import save_file
from wells import NETWORK, STIFFNESS, rough_sampler, well

from boltztilt.potentials.harmonic import Harmonic
from boltztilt.sampling.sampler import Sampler, sample
from boltztilt.systems.system import System, load_system
from boltztilt.tilt.training import train

WELL = """
name = "well"
[potential]
kind = "harmonic"
n_atoms = 4
stiffness = 4.0
"""


@pytest.fixture
def well_file(tmp_path):
    path = tmp_path / "well.toml"
    path.write_text(WELL)
    return path


def test_saved_sampler_draws_the_same_samples(tmp_path):
    sampler, path = rough_sampler(well()), tmp_path / "weights.safetensors"
    sampler.save(path)
    loaded = Sampler.load(path, well())
    first, again = sampler.sample(5, n_steps=2), loaded.sample(5, n_steps=2)
    assert torch.equal(first.positions, again.positions)
    assert torch.equal(first.log_weights, again.log_weights)
    assert loaded.metadata == sampler.metadata


def test_run_folder_with_its_system_needs_nothing_else(tmp_path, well_file):
    well_file.rename(tmp_path / "system.toml")
    sampler = rough_sampler(well())
    sampler.save(tmp_path / "weights.safetensors")
    drawn = sample(tmp_path, 5, seed=2, n_steps=2)
    assert torch.equal(drawn.positions, sampler.sample(5, seed=2, n_steps=2).positions)
    assert drawn.system.potential.stiffness == STIFFNESS


def test_weights_beside_the_file_of_a_system_are_found_by_it(tmp_path, well_file):
    rough_sampler(well()).save(tmp_path / "well.safetensors")
    assert Sampler.load(well_file).system.name == "well"


def test_weights_of_another_system_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    rough_sampler(well()).save(path)
    other = System("trap", Harmonic(n_atoms=4))
    with pytest.raises(ValueError, match="was trained for 'well', not for 'trap'"):
        Sampler.load(path, other)


def test_weights_that_do_not_fit_their_network_are_refused(tmp_path):
    path, sampler = tmp_path / "weights.safetensors", rough_sampler(well())
    sampler.metadata["recipe"] = {"network": {**NETWORK, "n_hidden": 16}}
    sampler.save(path)
    with pytest.raises(ValueError, match="does not fit its own network"):
        Sampler.load(path, well())


@pytest.mark.parametrize("metadata", [{}, {"system": "well"}, {"system": "well", "recipe": None}])
def test_weights_that_do_not_tell_what_they_are_for_are_refused(metadata, tmp_path):
    path, sampler = tmp_path / "weights.safetensors", rough_sampler(well())
    sampler.metadata = metadata
    sampler.save(path)
    with pytest.raises(ValueError, match="does not tell its system and network"):
        Sampler.load(path, well())


def test_corrupt_and_foreign_weights_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        Sampler.load(path, well())
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="no boltztilt weights"):
        Sampler.load(path, well())


def test_missing_weights_name_the_command_that_makes_them(tmp_path, well_file):
    with pytest.raises(FileNotFoundError, match=r"boltztilt train .*well\.toml -o runs/well"):
        Sampler.load(well_file)
    with pytest.raises(FileNotFoundError, match=r"train them with boltztilt\.train\(system, out="):
        sample(well(), 5)
    with pytest.raises(FileNotFoundError, match=r"holds no weights\.safetensors: train"):
        Sampler.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        Sampler.load(tmp_path / "absent.safetensors")


def test_a_system_stands_for_its_shipped_weights():
    by_name, by_system = sample("dw4", 5), sample(load_system("dw4"), 5)
    assert torch.equal(by_name.positions, by_system.positions)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'lj13'"):
        sample("lj31", 5)


def test_weights_for_another_number_of_atoms_are_refused(tmp_path):
    """Fields of alike atoms would take them without complaint."""
    path, sampler = tmp_path / "weights.safetensors", rough_sampler(well())
    sampler.metadata["n_atoms"] = 4
    sampler.save(path)
    other = System("well", Harmonic(n_atoms=7))
    with pytest.raises(ValueError, match="trained for 4 atoms, but 'well' has 7"):
        Sampler.load(path, other)


def test_weights_of_a_system_without_a_file_ask_for_it(tmp_path):
    path = tmp_path / "weights.safetensors"
    rough_sampler(well()).save(path)
    with pytest.raises(ValueError, match=r"'well', which no file describes.*system=\.\.\."):
        Sampler.load(path)


def test_run_folder_of_a_system_without_a_name_is_opened(tmp_path, well_file):
    text = well_file.read_text().replace('name = "well"', "")
    (tmp_path / "system.toml").write_text(text)
    rough_sampler(well()).save(tmp_path / "weights.safetensors")
    assert Sampler.load(tmp_path).system.name == "well"


def test_weights_of_another_energy_of_the_same_name_are_refused(tmp_path, well_file):
    settings = {"network": {"n_hidden": 4}, "n_particles": 8, "steps_per_rung": 1}
    train(well_file, out=tmp_path / "run", max_minutes=0.0, **settings)
    weights = tmp_path / "run" / "weights.safetensors"
    assert len(Sampler.load(tmp_path / "run").sample(3)) == 3
    assert len(Sampler.load(weights, well_file).sample(3)) == 3
    well_file.write_text("base_std = 1.5\n" + WELL)
    assert len(Sampler.load(weights, well_file).sample(3)) == 3  # the energy is the same
    well_file.write_text(WELL.replace("4.0", "5.0"))
    with pytest.raises(ValueError, match="4 of 4 energies differ from well's"):
        Sampler.load(weights, well_file)


def test_a_run_without_weights_yet_is_to_be_resumed(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "state.pt").touch()
    with pytest.raises(FileNotFoundError, match=r"continue training there \(--resume\)"):
        Sampler.load(tmp_path)
