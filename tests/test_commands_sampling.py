"""`sample` and `anneal` from the command line: what they write, and what they do not overwrite."""

import inspect
import json
import os
import shutil
import subprocess
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch
from command_line import assert_refused, boltztilt, command
from safetensors.torch import save_file

from boltztilt import cli
from boltztilt.arguments import default_output
from boltztilt.commands.sampling import write_ensemble
from boltztilt.option_types import Solver, Steps
from boltztilt.sampling.ensemble import Ensemble
from boltztilt.sampling.solvers import (
    DEFAULT_STEPS,
    MULTISTEP_STEPS,
    PACED_STEPS,
    SOLVERS,
    STEPS_WITHOUT_DENSITY,
    STOCHASTIC_ROUNDS,
)
from boltztilt.systems.system import load_system
from boltztilt.tilt.annealing import anneal


@pytest.fixture
def no_computation(monkeypatch):
    """Fails the test as soon as a sampler is opened or chains are started."""

    def refuse(*arguments, **options):
        raise AssertionError("work began before the output was checked")

    monkeypatch.setattr("boltztilt.commands.sampling.open_sampler", refuse)
    monkeypatch.setattr("boltztilt.tilt.annealing.anneal", refuse)


def test_default_steps_are_those_of_the_sampler():
    help_text = Steps.__metadata__[0].help
    defaults = f"multistep {MULTISTEP_STEPS}; rk4 {DEFAULT_STEPS}, at a measured pace {PACED_STEPS}"
    defaults += f", without density {STEPS_WITHOUT_DENSITY}"
    assert help_text.endswith(f"Default: {defaults}; rounds of noise: {STOCHASTIC_ROUNDS}.")
    for verb in (cli.sample, cli.evaluate):
        assert inspect.signature(verb).parameters["steps"].default is None


def test_defaults_of_anneal_are_those_of_the_package():
    given = inspect.signature(cli.anneal).parameters
    names = {"per_group": "n_per_group", "cess": "cess", "steps": "n_steps"}
    names |= {"leapfrog": "n_leapfrog", "batch_size": "batch_size", "seed": "seed"}
    expected = inspect.signature(anneal).parameters
    assert all(given[ours].default == expected[name].default for ours, name in names.items())


@pytest.mark.parametrize(("suffix", "tolerance"), [(".dcd", 1e-6), (".xtc", 6e-4), (".pdb", 6e-5)])
def test_written_trajectory_opens_in_mdtraj(run_folder, tmp_path, suffix, tolerance):
    output = tmp_path / f"out{suffix}"
    result = boltztilt("sample", run_folder, "-n", 5, "-o", output, "--steps", 4)
    assert result.exit_code == 0, result.output
    trajectory = mdtraj.load(str(output), top=str(tmp_path / "out.pdb"))
    with np.load(tmp_path / "out.npz") as saved:
        expected = saved["positions"] * load_system("lj13").nm_per_length
        assert saved["log_weights"].shape == (5,)
    np.testing.assert_allclose(trajectory.xyz, expected, atol=tolerance)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {f"out{suffix}", "out.pdb", "out.npz", "out.report.json"}
    assert all(name in result.stdout for name in written)


def test_sample_prints_the_figures_of_its_report(run_folder, tmp_path):
    result = boltztilt("sample", run_folder, "-n", 50, "-o", tmp_path / "out.npz", "--steps", 4)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert f"{report['ess']:.1%}" in result.stdout
    for words in ("<U> raw", "<U> reweighted", "log Z", "energy calls", "integration error"):
        assert words in result.stdout


def test_sample_without_density_has_no_weights(run_folder, tmp_path):
    result = boltztilt(
        "sample", run_folder, "-n", 4, "-o", tmp_path / "out.npz", "--no-density", "--steps", 2
    )
    assert result.exit_code == 0, result.output
    assert "log Z" not in result.stdout


def test_resampled_and_refined_structures_have_the_energy_of_the_target(run_folder, tmp_path):
    output = tmp_path / "out.npz"
    options = ["--resample", "--refine", 20, "--steps", 6, "--quiet"]
    result = boltztilt("sample", run_folder, "-n", 1000, "-o", output, *options)
    assert result.exit_code == 0, result.output
    with np.load(output) as saved:
        energies = saved["energies"]
    standard_error = np.sqrt(3.0 / 1000)  # six degrees of freedom: <U> = 3, variance 3
    assert abs(energies.mean() - 3.0) < 4 * standard_error
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert f"{report['n_energy']:,}" in result.stdout
    assert report["n_energy"] > 20_000 > report["sampler"]["n_energy"]
    assert report["wall_time"] > report["sampler"]["wall_time"]


def test_structures_that_cannot_be_resampled_are_kept(tmp_path, capsys):
    system = load_system("lj13")
    overlapping = Ensemble(torch.zeros(3, 13, 3), torch.full((3,), np.inf), torch.zeros(3), system)
    overlapping.info = {"n_energy": 3, "wall_time": 0.1}
    with pytest.raises(ValueError, match=r"none of the 3 structures .*out.npz holds"):
        write_ensemble(overlapping, tmp_path / "out.npz", True, 0, 0, False)
    assert len(Ensemble.load(tmp_path / "out.npz")) == 3
    write_ensemble(overlapping, tmp_path / "raw.npz", False, 0, 0, False)
    assert "none of the 3 structures" in capsys.readouterr().err


def test_four_dimensions_are_refused_before_any_work(tmp_path, no_computation):
    table = 'kind = "harmonic"\nn_atoms = 2\nn_dims = 4\nstiffness = 1.0\n'
    (tmp_path / "four.toml").write_text(f"[potential]\n{table}")
    for verb in ("anneal", "reference"):
        refused = boltztilt(verb, tmp_path / "four.toml", "-o", tmp_path / "out.dcd")
        assert_refused(refused, "at most 3 dimensions", ".npz")


def test_unknown_element_is_refused_before_any_work(tmp_path, no_computation):
    table = 'kind = "harmonic"\nn_atoms = 2\nstiffness = 1.0\n[export]\nelement = "LJ"'
    (tmp_path / "pair.toml").write_text(f"[potential]\n{table}")
    for verb in ("anneal", "reference"):
        refused = boltztilt(verb, tmp_path / "pair.toml", "-o", tmp_path / "out.dcd")
        assert_refused(refused, "'LJ' is not the symbol")


def test_default_names_leave_the_files_of_a_system_alone(tmp_path):
    """A topology is written beside a trajectory, and a molecule's PDB file is called likewise."""
    assert default_output("lj13") == Path("lj13.dcd")
    assert default_output("my_molecule.toml") == Path("my_molecule_samples.dcd")
    assert default_output(str(tmp_path)) == Path(f"{tmp_path.name}_samples.dcd")


def test_weights_of_a_run_folder_may_be_given_apart(run_folder, tmp_path):
    words = ["-o", tmp_path / "out.npz", "-n", 2, "--steps", 2, "-q"]
    weights = run_folder / "weights.safetensors"
    result = boltztilt("sample", run_folder, "--weights", weights, *words)
    assert result.exit_code == 0, result.output


def test_steps_of_a_solver_that_chooses_them_are_refused(run_folder, tmp_path):
    words = [run_folder, "--solver", "dopri5", "--steps", 2, "-o", tmp_path / "out"]
    assert_refused(boltztilt("evaluate", *words), "leave out --steps 2")
    assert_refused(boltztilt("sample", *words[:-1], tmp_path / "out.npz"), "leave out --steps 2")


def test_output_is_called_after_the_run_folder_one_stands_in(run_folder, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    shutil.copytree(run_folder, folder)
    monkeypatch.chdir(folder)
    result = boltztilt("sample", ".", "-n", 2, "--steps", 2, "-q")
    assert result.exit_code == 0, result.output
    assert (folder / "mine_samples.dcd").exists()


def test_the_seed_decides_the_sample(run_folder, tmp_path):
    options = ["-n", 3, "--steps", 2, "--no-density", "--quiet"]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        output = tmp_path / f"{name}.npz"
        result = boltztilt("sample", run_folder, "-o", output, "--seed", seed, *options)
        assert result.exit_code == 0, result.output
    first, same, other = (np.load(tmp_path / f"{name}.npz")["positions"] for name in "abc")
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, other)


def test_sample_lj13_with_shipped_weights(tmp_path):
    finished = subprocess.run(
        command("sample", "lj13", "-n", "64", "-o", "lj13.dcd"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    trajectory = mdtraj.load(str(tmp_path / "lj13.dcd"), top=str(tmp_path / "lj13.pdb"))
    positions = torch.tensor(trajectory.xyz / load_system("lj13").nm_per_length)
    energies = load_system("lj13").potential.energy(positions)
    assert -50 < energies.median() < -36


def test_anneal_writes_the_files_of_sample_and_explains_its_weights(system_file, tmp_path):
    output = tmp_path / "out.dcd"
    words = ["--per-group", 10, "--steps", 2, "--leapfrog", 3, "--seed", 5, "-q"]
    result = boltztilt("anneal", system_file, "-n", 300, "-o", output, *words)
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {
        f"out{suffix}" for suffix in (".dcd", ".pdb", ".npz", ".report.json")
    }
    trajectory = mdtraj.load(str(output), top=str(tmp_path / "out.pdb"))
    with np.load(tmp_path / "out.npz") as saved:
        expected = saved["positions"] * load_system("lj13").nm_per_length
        assert len(np.unique(saved["log_weights"])) == 30
        assert len(np.unique(saved["groups"])) == 30
    np.testing.assert_allclose(trajectory.xyz, expected, atol=1e-6)
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert (report["n_groups"], report["seed"]) == (30, 5)
    assert 30 <= report["n_ancestors"] <= 300
    assert report["n_energy"] > report["n_energy_pilot"] > 0
    error = report["energy_reweighted"]["error"]
    assert abs(report["energy_reweighted"]["value"] - 3.0) < 4 * error  # six degrees of freedom
    for words in ("ESS", "groups", "independent", "ancestors", "log Z", "energy calls"):
        assert words in result.stdout
    assert f"{report['ess']:.1%}" in result.stdout


def test_annealed_structures_can_be_resampled_and_refined(system_file, tmp_path):
    output = tmp_path / "out.npz"
    options = ["--resample", "--refine", 10, "--steps", 1, "--leapfrog", 3, "--quiet"]
    result = boltztilt("anneal", system_file, "-n", 1200, "-o", output, *options)
    assert result.exit_code == 0, result.output
    with np.load(output) as saved:
        assert "log_weights" not in saved
        assert abs(saved["energies"].mean() - 3.0) < 5 * np.sqrt(3.0 / 500)
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["sampler"]["method"] == "annealed transport"
    assert "<U> refined" in result.stdout


def test_a_single_group_says_that_its_errors_are_unknown(system_file, tmp_path):
    words = ["-n", 5, "--steps", 1, "--leapfrog", 2, "-q"]
    result = boltztilt("anneal", system_file, "-o", tmp_path / "out.npz", *words)
    assert result.exit_code == 0, result.output
    assert "± unknown" in result.stdout
    assert "one group only, ask for more" in result.stdout


@pytest.mark.parametrize("existing", ["out.dcd", "out.npz", "out.pdb", "out.report.json"])
@pytest.mark.parametrize("verb", ["sample", "anneal"])
def test_existing_output_is_refused_before_sampling(tmp_path, no_computation, verb, existing):
    (tmp_path / existing).write_text("precious")
    assert_refused(boltztilt(verb, "lj13", "-o", tmp_path / "out.dcd"), existing, "--force")
    assert (tmp_path / existing).read_text() == "precious"


def test_force_replaces_output(run_folder, tmp_path):
    (tmp_path / "out.npz").write_text("old")
    words = ["sample", run_folder, "-n", 3, "-o", tmp_path / "out.npz", "--steps", 2]
    assert_refused(boltztilt(*words), "out.npz", "--force")
    result = boltztilt(*words, "--force")
    assert result.exit_code == 0, result.output
    assert np.load(tmp_path / "out.npz")["positions"].shape == (3, 3, 3)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder_is_refused_before_sampling(tmp_path, no_computation):
    tmp_path.chmod(0o500)
    assert_refused(boltztilt("sample", "lj13", "-o", tmp_path / "out.dcd"), "permission")


@pytest.mark.parametrize("content", ["empty", "text", "foreign", "truncated"])
def test_bad_weights_are_refused(run_folder, tmp_path, content):
    path = tmp_path / "bad.safetensors"
    if content == "foreign":
        save_file({"other.weight": torch.ones(3)}, path)
    else:
        whole = (run_folder / "weights.safetensors").read_bytes()
        path.write_bytes({"empty": b"", "text": b"hello", "truncated": whole[:-100]}[content])
    output = tmp_path / "out.dcd"
    assert_refused(
        boltztilt("sample", "lj13", "-n", 3, "-o", output, "--weights", path, "-q"), "bad"
    )
    assert_refused(boltztilt("info", path), "bad")
    assert not output.exists()


def test_every_solver_of_the_package_can_be_chosen():
    assert tuple(Solver) == SOLVERS
