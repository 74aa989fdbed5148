"""`train` from the command line: its folder, and how it survives a kill."""

import signal
import subprocess
import time

import pytest
import torch
from command_line import assert_refused, boltztilt, command, spawn
from safetensors.torch import load_file

from boltztilt.arguments import read_overrides


def test_a_run_is_not_overwritten(training_words, run_folder):
    before = (run_folder / "weights.safetensors").read_bytes()
    assert_refused(boltztilt(*training_words, "-o", run_folder), "--resume", "--force")
    assert (run_folder / "weights.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["weights.safetensors", "system.toml", "log.csv"])
def test_what_a_run_left_without_its_state_is_not_overwritten(training_words, tmp_path, name):
    (tmp_path / name).write_text("mine")
    words = [*training_words, "-o", tmp_path, "--max-minutes", 0]
    assert_refused(boltztilt(*words), f"already holds {name}", "--force")
    assert (tmp_path / name).read_text() == "mine"
    result = boltztilt(*words, "--force")
    assert result.exit_code == 0, result.output


def test_overrides_are_read_as_toml_and_may_enter_tables():
    texts = ["cess=0.9", "optimiser=adamw", "network.n_hidden=32", "network.kind='egnn'"]
    assert read_overrides(texts) == {
        "cess": 0.9,
        "optimiser": "adamw",
        "network": {"n_hidden": 32, "kind": "egnn"},
    }


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["seed=3"], "give --seed 3"),
        (["network=unrolled", "network.n_layers=4"], "network was given as 'unrolled', not as a"),
        (["cess"], "expected key=value"),
    ],
)
def test_overrides_that_cannot_be_meant_are_refused(texts, words):
    with pytest.raises(ValueError, match=words):
        read_overrides(texts)


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
