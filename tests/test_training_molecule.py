"""A molecule's training run, tiny: its log, its resumption, its files and its failing frames."""

import csv
import math
import shutil
from importlib.resources import files
from itertools import pairwise

import pytest
import torch

from boltztilt.checkpoint import load_state, load_weights
from boltztilt.potentials.molecular import ForceFieldPotential
from boltztilt.sampling.sampler import Sampler
from boltztilt.systems.system import System, load_system
from boltztilt.tilt.recipe import load_recipe
from boltztilt.tilt.run import TrainingRun, state_path
from boltztilt.tilt.training import train

TINY = {
    "network": {"n_hidden": 4, "n_channels": 2, "n_radial": 6, "max_degree": 1},
    "n_particles": 16,
    "rungs_per_rollout": 1000,
    "rollout_steps": 2,
    "steps_per_rung": 2,
    "first_rung_factor": 1.0,
    "cess": 0.05,
    "recentring_steps": 20,
    "polish_steps": 2,
    "polish_refresh": 1,
    "polish_chain_steps": 2,
    "likelihood_steps": 2,
    "likelihood_batch": 2,
    "likelihood_solver_steps": 2,
    "batch_size": 8,
    "compile": False,
}


@pytest.fixture
def molecule_file(tmp_path):
    """A system of one's own, without a name, whose PDB file lies in a folder beside it."""
    (tmp_path / "structures").mkdir()
    shipped = files("boltztilt.systems")
    shutil.copyfile(shipped / "aldp.pdb", tmp_path / "structures" / "mine.pdb")
    text = (shipped / "aldp-vacuum.toml").read_text()
    text = text.replace('name = "aldp-vacuum"', "").replace("aldp.pdb", "structures/mine.pdb")
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def log(folder):
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_run_of_a_molecule_counts_ancestors_and_mirror_images(molecule_file, tmp_path):
    """Sliced into single updates, it comes to the same weights and log, and can be reopened."""
    whole = train(molecule_file, out=tmp_path / "whole", **TINY)
    assert whole.metadata["finished"]
    assert (whole.metadata["system"], whole.metadata["n_atoms"]) == ("mine", 22)
    rows = log(tmp_path / "whole")
    counts = [int(row["n_ancestors"]) for row in rows if row["stage"] == "ladder"]
    assert all(16 >= first >= then >= 1 for first, then in pairwise(counts))
    assert counts[-1] < 16
    for row in rows:
        share = float(row["mirrored"])
        assert 0 <= share <= 1
        assert share * 16 == pytest.approx(round(share * 16))

    train(molecule_file, out=tmp_path / "sliced", max_minutes=0.0, **TINY)
    for _ in range(3):
        train(molecule_file, out=tmp_path / "sliced", resume=True, max_minutes=0.0)
    train(molecule_file, out=tmp_path / "sliced", resume=True)
    sliced = log(tmp_path / "sliced")
    for row in rows + sliced:
        del row["seconds"]
    assert sliced == rows
    weights, again = (
        load_weights(tmp_path / name / "weights.safetensors")[0] for name in ("whole", "sliced")
    )
    assert all(torch.equal(again[name], values) for name, values in weights.items())

    shutil.rmtree(tmp_path / "structures")
    molecule_file.unlink()
    reopened = Sampler.load(tmp_path / "whole").sample(4, seed=2, n_steps=2)
    expected = whole.sample(4, seed=2, n_steps=2)
    assert torch.equal(reopened.positions, expected.positions)
    assert torch.equal(reopened.energies, expected.energies)


class Failing(ForceFieldPotential):
    """The force field of the dipeptide, whose energy is NaN for one frame in seven."""

    def __init__(self, potential):
        super().__init__(potential.terms, potential.n_atoms, compile=False)
        self.n_failed = 0

    def energy(self, positions):
        return self._failing(super().energy(positions))

    def energy_and_force(self, positions):
        energy, force = super().energy_and_force(positions)
        energy = self._failing(energy)
        return energy, torch.where(energy.isnan()[:, None, None], 0.0, force)

    def _failing(self, energy):
        energy = energy.clone()
        energy[3::7] = math.nan
        self.n_failed += len(energy[3::7])
        return energy


def test_frames_without_an_energy_are_counted_and_do_not_stop_a_run(tmp_path):
    shipped = load_system("aldp-vacuum")
    potential = Failing(shipped.potential)
    settings = {"molecule": shipped.molecule, "species": shipped.species, "base_std": 0.1}
    system = System("failing", potential, base_kind="bonds", recipe=shipped.recipe, **settings)
    assert potential.n_failed == 2  # of twice four structures at which a new energy is tried
    potential.n_failed = -1  # and one more of the examples in the record
    sampler = train(system, out=tmp_path, **TINY)
    assert sampler.metadata["finished"]
    assert sampler.metadata["n_nonfinite"] >= potential.n_failed > 50
    assert sampler.metadata["n_skipped_updates"] == 0
    for row in log(tmp_path):
        assert math.isfinite(float(row["mean_energy"]))
    for values in load_weights(tmp_path / "weights.safetensors")[0].values():
        assert torch.isfinite(values).all()


def test_files_outside_the_folder_of_the_system_are_refused(molecule_file, tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    text = molecule_file.read_text().replace("structures/mine.pdb", "../structures/mine.pdb")
    (inner / "mine.toml").write_text(text)
    with pytest.raises(ValueError, match=r"mine\.pdb does not lie in the folder of"):
        train(inner / "mine.toml", out=tmp_path / "run", **TINY)
    assert not (tmp_path / "run").exists()


def test_a_foreign_file_with_the_name_of_the_systems_is_not_replaced(molecule_file, tmp_path):
    foreign = tmp_path / "run" / "structures" / "mine.pdb"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    with pytest.raises(FileExistsError, match=r"mine\.pdb exists and differs .* another folder"):
        train(molecule_file, out=tmp_path / "run", max_minutes=0.0, **TINY)
    assert foreign.read_text() == "mine"
    assert not (tmp_path / "run" / "recipe.toml").exists()
    train(molecule_file, out=tmp_path / "run", max_minutes=0.0, overwrite=True, **TINY)
    assert foreign.read_bytes() == (tmp_path / "structures" / "mine.pdb").read_bytes()


def test_a_resumed_run_compiles_its_energies_when_it_would_have(molecule_file, tmp_path):
    """Compiled energies differ by rounding: their number decides, not the process."""
    system = load_system(molecule_file)
    system.potential.n_evaluated = 10**9
    train(system, out=tmp_path / "run", max_minutes=0.0, **TINY)
    counted = system.potential.n_evaluated
    assert 0 < counted < 10**6
    again = load_system(molecule_file)
    state = load_state(state_path(tmp_path / "run"))
    run = TrainingRun(again, load_recipe(tmp_path / "run" / "recipe.toml")[0], 0, "cpu")
    run.restore(state)
    assert again.potential.n_evaluated == counted
