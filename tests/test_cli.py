"""The command line, end to end: what it writes, what it refuses, and how it survives a kill."""

import inspect
import json
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial

import mdtraj
import numpy as np
import openmm.app
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from boltztilt import __version__, cli, console
from boltztilt.analysis import dynamics, molecular_reference
from boltztilt.arguments import read_overrides
from boltztilt.option_types import Solver, Steps
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

SYSTEM = """
name = "springs"
title = "Three atoms on springs"
convention = "U = 1/2 stiffness sum_i |x_i - mean|^2, kT = 1"

[potential]
kind = "harmonic"
n_atoms = 3
stiffness = 2.0

[recipe]
n_particles = 64
recentring_steps = 2
steps_per_rung = 10
polish_steps = 80
polish_particles = 64
polish_refresh = 20
polish_chain_steps = 2
batch_size = 32
checkpoint_minutes = 0.0

[recipe.network]
kind = "local_density"
n_hidden = 8
n_channels = 2
n_radial = 8
"""


def boltztilt(*words):
    """The result of one command run inside this process."""
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def command(*words):
    return [sys.executable, "-m", "boltztilt", *(str(word) for word in words)]


def spawn(*words):
    """The finished process of one command."""
    return subprocess.run(command(*words), capture_output=True, text=True, check=False)


def assert_refused(result, *expected):
    """One clear line on stderr that holds the expected words, exit code 2, no traceback."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("boltztilt: error: ")
    assert "Traceback" not in result.output
    for words in expected:
        assert words.lower() in lines[0].lower()


@pytest.fixture(scope="module")
def system_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("system") / "springs.toml"
    path.write_text(SYSTEM)
    return path


@pytest.fixture(scope="module")
def training_words(system_file):
    """The arguments of a training that takes seconds, all but the run folder."""
    return ["train", system_file, "--quiet"]


@pytest.fixture(scope="module")
def run_folder(training_words, tmp_path_factory):
    """A finished, uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "springs"
    finished = spawn(*training_words, "-o", folder)
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.fixture
def no_computation(monkeypatch):
    """Fails the test as soon as a sampler is opened or chains are started."""

    def refuse(*arguments, **options):
        raise AssertionError("work began before the output was checked")

    monkeypatch.setattr("boltztilt.commands.sampling.open_sampler", refuse)
    monkeypatch.setattr("boltztilt.tilt.annealing.anneal", refuse)


# help and version


def test_help_is_fast_and_imports_no_torch():
    code = (
        "import sys\n"
        "from boltztilt.cli import app\n"
        "try:\n    app(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "sys.exit(sum(name in sys.modules for name in ('torch', 'numpy', 'mdtraj', 'openmm')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert spawn("--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 1.5  # seconds of the processor: other load does not count


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


@pytest.mark.parametrize(
    "verb", ["systems", "info", "sample", "anneal", "train", "evaluate", "reference"]
)
def test_help_of_every_verb_has_an_example(verb):
    result = boltztilt(verb, "--help")
    assert result.exit_code == 0
    assert f"boltztilt {verb}" in result.stdout


def test_version():
    assert boltztilt("--version").stdout == f"boltztilt {__version__}\n"
    assert spawn("--version").stdout == f"boltztilt {__version__}\n"


# systems and info


def test_systems_lists_the_shipped_ones():
    result = boltztilt("systems")
    assert result.exit_code == 0
    assert {"lj13", "lj55", "dw4"} <= set(result.stdout.split())


def test_info_states_the_energy_convention(system_file, run_folder):
    for target in (system_file, run_folder):
        result = boltztilt("info", target)
        assert result.exit_code == 0, result.output
        assert "stiffness sum_i" in " ".join(result.stdout.split())


def test_info_tells_the_runs_before_in_a_row_each():
    words = " ".join(boltztilt("info", "lj55").stdout.split())
    assert "started from lj55: n updates 5,000, n energy 6,456,320, wall time 2894.2" in words
    assert "started from lj13: n updates 6,650" in words
    assert "placed by errors measured in 16 parts" in words
    assert words.count("recipe, coupling") == 1


# sample


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


def test_stochastic_field_is_trained_sampled_and_evaluated(training_words, tmp_path):
    run, output = tmp_path / "run", tmp_path / "out.npz"
    small = ["--set", "network.n_layers=2", "--set", "polish_steps=10"]
    result = boltztilt(*training_words, "-o", run, "--stochastic", *small)
    assert result.exit_code == 0, result.output
    words = ["-n", 40, "--stochastic", "--steps", 5, "-q"]
    result = boltztilt("sample", run, "-o", output, *words)
    assert result.exit_code == 0, result.output
    assert "ESS" not in result.stdout
    with np.load(output) as saved:
        assert "log_weights" not in saved
        assert np.isfinite(saved["energies"]).all()
    result = boltztilt("evaluate", run, "--refine", 4, *words)
    assert result.exit_code == 0, result.output
    report = json.loads((run / "report.json").read_text())
    assert report["stochastic"]
    assert {"raw", "floor"} <= report["energy_w2"].keys()
    assert "ess" not in report
    assert report["refined"]["refine_steps"] == 4
    pictures = {path.name for path in (run / "plots").glob("*.png")}
    assert {"energy.png", "refined_energy.png"} <= pictures
    assert "log_weights.png" not in pictures


# anneal


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


# refused input


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sample", "lj31"], "did you mean 'lj13'"),
        (["info", "lj31"], "did you mean 'lj13'"),
        (["train", "lj31", "-o", "run"], "did you mean 'lj13'"),
        (["reference", "lj31", "-o", "r.npz"], "did you mean 'lj13'"),
        (["evaluate", "lj31"], "did you mean 'lj13'"),
        (["sample", "lj13", "-n", "0"], "-n"),
        (["sample", "lj13", "-n", "-5"], "-n"),
        (["sample", "lj13", "-n", "many"], "-n"),
        (["sample", "lj13", "--steps", "0"], "--steps"),
        (["sample", "lj13", "-o", "out.xyz"], ".xyz"),
        (["sample", "lj13", "-o", "out"], "out"),
        (["sample", "lj13", "-o", "absent/out.dcd"], "absent"),
        (["sample", "lj13", "--resample", "--no-density"], "--no-density"),
        (["sample", "lj55", "--resample", "--stochastic"], "--stochastic"),
        (["sample", "lj55", "--stochastic", "--solver", "dopri5"], "dopri5"),
        (["sample", "lj13", "--solver", "multistep"], "use 'rk4'"),
        (["sample", "lj13", "--stochastic"], "boltztilt train lj13 --stochastic"),
        (["evaluate", "lj13", "--stochastic"], "boltztilt train lj13 --stochastic"),
        (["sample", "lj13", "--solver", "euler"], "euler"),
        (["sample", "lj13", "--device", "cuda:77"], "cuda:77"),
        (["sample", "lj13", "--weights", "absent.safetensors"], "absent.safetensors"),
        (["sample"], "name"),
        (["anneal", "lj31"], "did you mean 'lj13'"),
        (["anneal", "lj13", "-n", "0"], "-n"),
        (["anneal", "lj13", "--cess", "1.5"], "--cess"),
        (["anneal", "lj13", "--per-group", "0"], "--per-group"),
        (["anneal", "lj13", "--leapfrog", "0"], "--leapfrog"),
        (["anneal", "lj13", "--seed", "-1"], "--seed"),
        (["anneal", "lj13", "-o", "out.xyz"], ".xyz"),
        (["anneal", "absent.toml"], "absent.toml"),
        (["sample", "lj13", "--colour"], "--colour"),
        (["paint"], "paint"),
        (["train", "lj13"], "--output"),
        (["train", "lj13", "-o", "run", "--resume"], "run"),
        (["train", "lj13", "-o", "run", "--set", "cess"], "key=value"),
        (["train", "lj13", "-o", "run", "--set", "no_such_key=3"], "no_such_key"),
        (["evaluate", "absent/run"], "absent/run"),
        (["reference", "lj13", "-o", "out.gro"], ".npz"),
        (["reference", "aldp", "-o", "out.npz", "--resume"], "out.partial"),
        (["reference", "lj13", "-o", "out.npz", "-n", "0"], "-n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line(words, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(boltztilt(*words), expected)
    assert list(tmp_path.iterdir()) == []


def test_bad_input_in_a_real_process():
    finished = spawn("sample", "lj31")
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1
    assert "lj13" in finished.stderr


def test_debug_shows_the_traceback():
    finished = spawn("sample", "lj31", "--debug")
    assert "Traceback" in finished.stderr
    assert "ValueError" in finished.stderr


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


def test_a_run_is_not_overwritten(training_words, run_folder):
    before = (run_folder / "weights.safetensors").read_bytes()
    assert_refused(boltztilt(*training_words, "-o", run_folder), "--resume", "--force")
    assert (run_folder / "weights.safetensors").read_bytes() == before


# train


def test_every_solver_of_the_package_can_be_chosen():
    assert tuple(Solver) == SOLVERS


def test_overrides_are_read_as_toml_and_may_enter_tables():
    texts = ["cess=0.9", "optimiser=adamw", "network.n_hidden=32", "network.kind='egnn'"]
    assert read_overrides(texts) == {
        "cess": 0.9,
        "optimiser": "adamw",
        "network": {"n_hidden": 32, "kind": "egnn"},
    }


def test_run_folder_has_recipe_log_checkpoint_and_weights(run_folder):
    names = {path.name for path in run_folder.iterdir()}
    assert {"recipe.toml", "log.csv", "checkpoint", "weights.safetensors"} <= names


def start_training(words, folder, until):
    """A training process that has got as far as the condition says."""
    process = subprocess.Popen(
        command(*words, "-o", folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not until():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def assert_same_run(folder, other):
    """The same weights to the last bit, and the same log but for the clock."""
    weights, others = (load_file(path / "weights.safetensors") for path in (folder, other))
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name
    rows, other_rows = (without_seconds(path / "log.csv") for path in (folder, other))
    assert rows == other_rows


def without_seconds(path):
    header, *rows = (line.split(",") for line in path.read_text().splitlines())
    clock = header.index("seconds")
    return [header, *([cell for i, cell in enumerate(row) if i != clock] for row in rows)]


def test_a_killed_run_resumes_to_the_same_result(training_words, run_folder, tmp_path):
    folder = tmp_path / "run"
    for _ in range(2):
        resume = ["--resume"] if folder.exists() else []
        before = checkpoint_time(folder)
        process = start_training(
            [*training_words, *resume],
            folder,
            lambda before=before: checkpoint_time(folder) > before,
        )
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    finished = spawn(*training_words, "-o", folder, "--resume")
    assert finished.returncode == 0, finished.stderr
    assert_same_run(folder, run_folder)


def checkpoint_time(folder):
    path = folder / "checkpoint" / "state.pt"
    return path.stat().st_mtime_ns if path.exists() else 0


def test_an_interrupted_run_says_how_to_resume(training_words, run_folder, tmp_path):
    folder = tmp_path / "run"
    process = start_training(training_words, folder, lambda: checkpoint_time(folder) > 0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert f"-o {folder} --resume" in errors
    assert "Traceback" not in errors
    finished = spawn(*training_words, "-o", folder, "--resume")
    assert finished.returncode == 0, finished.stderr
    assert_same_run(folder, run_folder)


# reference and evaluate


def test_evaluate_makes_and_keeps_a_reference(run_folder, tmp_path):
    folder = tmp_path / "evaluation"
    words = ["evaluate", run_folder, "-n", 30, "-o", folder, "--steps", 3, "-q"]
    result = boltztilt(*words)
    assert result.exit_code == 0, result.output
    assert (folder / "reference.npz").exists()
    report = json.loads((folder / "report.json").read_text())
    assert report["n"] == 30
    assert list((folder / "plots").glob("*.png"))
    kept = (folder / "reference.npz").read_bytes()
    assert boltztilt(*words).exit_code == 0
    assert (folder / "reference.npz").read_bytes() == kept


def test_evaluate_refuses_a_foreign_reference(run_folder, tmp_path):
    np.savez(tmp_path / "other.npz", numbers=np.ones(3))
    words = ["evaluate", run_folder, "-o", tmp_path / "out", "--reference", tmp_path / "other.npz"]
    assert_refused(boltztilt(*words), "other.npz")


def test_a_missing_extra_is_named(run_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert_refused(
        boltztilt("evaluate", run_folder, "-n", 50, "-o", tmp_path / "out", "-q"), "plot"
    )


def test_reference_is_written_and_not_overwritten(system_file, tmp_path):
    output = tmp_path / "reference.npz"
    words = ["reference", system_file, "-n", 100, "-o", output, "-q"]
    result = boltztilt(*words)
    assert result.exit_code == 0, result.output
    assert "virial" in result.stdout
    assert np.load(output)["positions"].shape == (100, 3, 3)
    assert_refused(boltztilt(*words), "reference.npz", "--force")


@pytest.fixture
def water_file(tmp_path):
    """A system TOML of one water molecule, whose dynamics takes a second."""
    topology, system = openmm.app.Topology(), openmm.System()
    residue = topology.addResidue("HOH", topology.addChain())
    bonds, angles = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    for name, mass in (("O", 16.0), ("H1", 1.0), ("H2", 1.0)):
        topology.addAtom(name, openmm.app.Element.getBySymbol(name[0]), residue)
        system.addParticle(mass)
    atoms = list(topology.atoms())
    for hydrogen in (1, 2):
        topology.addBond(atoms[0], atoms[hydrogen])
        bonds.addBond(0, hydrogen, 0.1, 4e5)
    angles.addAngle(1, 0, 2, 1.824, 800.0)
    system.addForce(bonds)
    system.addForce(angles)
    positions = np.array([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [-0.025, 0.097, 0.0]])
    with open(tmp_path / "water.pdb", "w") as file:
        openmm.app.PDBFile.writeFile(topology, 10.0 * positions, file)
    (tmp_path / "water.xml").write_text(openmm.XmlSerializer.serialize(system))
    table = 'pdb = "water.pdb"\nsystem_xml = "water.xml"\ntemperature = 300.0\n'
    (tmp_path / "water.toml").write_text(f"[molecule]\n{table}")
    return tmp_path / "water.toml"


def test_reference_of_a_molecule_survives_an_interruption(water_file, tmp_path, monkeypatch):
    quick = partial(molecular_reference.temper, n_rounds=10)
    monkeypatch.setattr(molecular_reference, "temper", quick)

    def reference(name, *options):
        return boltztilt("reference", water_file, "-n", 1200, "-o", tmp_path / name, "-q", *options)

    assert reference("whole.dcd").exit_code == 0
    run = dynamics.langevin
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 120:  # 45 replicas: settling, a round of blocks, part of the second
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(dynamics, "langevin", interrupted)
    stopped = reference("again.dcd")
    assert stopped.exit_code == 130
    assert "--resume" in stopped.stderr
    assert_refused(reference("again.dcd"), "again.partial", "--resume", "--force")
    monkeypatch.setattr(dynamics, "langevin", run)
    result = reference("again.dcd", "--resume")
    assert result.exit_code == 0, result.output
    assert "tempering" in result.stdout
    assert not (tmp_path / "again.partial").exists()
    again, whole = (np.load(tmp_path / name)["positions"] for name in ("again.npz", "whole.npz"))
    assert np.array_equal(again, whole)
    assert len(mdtraj.load(tmp_path / "again.dcd", top=tmp_path / "again.pdb")) == 1200


def test_titles_show_brackets_as_they_are(capsys):
    console.print_table("U = [r^-12 - 2 r^-6]", [("n", "13")])
    assert "U = [r^-12 - 2 r^-6]" in capsys.readouterr().out
