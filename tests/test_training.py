"""Training runs: exact resumption after any interruption, and refusals that lose nothing."""

import math
import os
import signal
import threading
from itertools import pairwise

import pytest
import torch
from small_runs import SMALL, assert_same, cluster, finish, result

from boltztilt.checkpoint import load_weights
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.sampling.sampler import Sampler
from boltztilt.systems.system import System
from boltztilt.tilt.status import LOG_COLUMNS
from boltztilt.tilt.training import train


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(cluster(), out=folder, seed=3, **SMALL)
    return result(folder)


def test_run_folder_holds_recipe_log_state_and_weights(uninterrupted):
    weights, rows, metadata = uninterrupted
    assert weights
    assert rows[0] == list(LOG_COLUMNS[:-1])
    stages = [row[0] for row in rows[1:]]
    assert stages[0] == "ladder"
    assert "polish" in stages
    assert stages[-1] == "likelihood"
    assert metadata["finished"]
    assert metadata["a"] == 1.0
    assert metadata["n_updates"] == 3 * metadata["n_rungs"] + 7 + 3
    assert metadata["n_energy"] > 0


def test_log_climbs_without_gaps(uninterrupted):
    table = [dict(zip(LOG_COLUMNS, row, strict=False)) for row in uninterrupted[1][1:]]
    rungs = [row for row in table if row["stage"] == "ladder"]
    assert [int(row["rung"]) for row in rungs] == list(range(len(rungs)))
    assert float(rungs[0]["a"]) == 0.0
    for row, following in pairwise(rungs):
        assert float(following["a"]) == pytest.approx(float(row["a"]) + float(row["h"]))
        assert int(following["n_energy"]) > int(row["n_energy"])
    assert float(rungs[-1]["a"]) + float(rungs[-1]["h"]) == pytest.approx(1.0)


def test_slices_of_one_update_give_the_same_result(uninterrupted, tmp_path):
    sampler = train(cluster(), out=tmp_path, seed=3, max_minutes=0.0, **SMALL)
    n_slices = 1
    while not sampler.metadata["finished"]:
        sampler = train(cluster(), out=tmp_path, resume=True, max_minutes=0.0)
        n_slices += 1
        assert sampler.metadata["n_updates"] == n_slices
    assert_same(result(tmp_path), uninterrupted)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch without Muon")
def test_muon_resumes_exactly(tmp_path):
    settings = {**SMALL, "optimiser": "muon"}
    train(cluster(), out=tmp_path / "whole", **settings)
    train(cluster(), out=tmp_path / "sliced", max_minutes=0.0, **settings)
    train(cluster(), out=tmp_path / "sliced", resume=True, max_minutes=0.0)
    finish(cluster(), tmp_path / "sliced")
    assert_same(result(tmp_path / "sliced"), result(tmp_path / "whole"))


def killed_child(folder, body):
    """Runs `body` in a child process that kills itself with SIGKILL."""
    child = os.fork()
    if child == 0:
        try:
            body()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert not (folder / "weights.safetensors").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
@pytest.mark.parametrize("n_updates", [1, 8, 14])
@pytest.mark.parametrize("checkpoint_minutes", [0.0, 1000.0], ids=["checkpoints", "none"])
def test_killed_run_continues_to_the_same_result(
    n_updates, checkpoint_minutes, uninterrupted, tmp_path
):
    settings = {**SMALL, "checkpoint_minutes": checkpoint_minutes}

    def body():
        seen = []

        def progress(status):
            seen.append(status)
            if len(seen) == n_updates:
                os.kill(os.getpid(), signal.SIGKILL)

        train(cluster(), out=tmp_path, seed=3, progress=progress, **settings)

    killed_child(tmp_path, body)
    finish(cluster(), tmp_path)
    weights, rows, metadata = result(tmp_path)
    metadata["recipe"] = uninterrupted[2]["recipe"]  # which differs in checkpoint_minutes alone
    assert_same((weights, rows, metadata), uninterrupted)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_run_killed_while_it_writes_a_checkpoint_keeps_the_one_before(uninterrupted, tmp_path):
    train(cluster(), out=tmp_path, seed=3, max_minutes=0.0, **SMALL)
    (tmp_path / "weights.safetensors").unlink()

    def body():
        def half_written(state, path):
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half_written
        train(cluster(), out=tmp_path, resume=True, max_minutes=0.0)

    killed_child(tmp_path, body)
    finish(cluster(), tmp_path)
    assert_same(result(tmp_path), uninterrupted)


def test_interrupt_saves_and_resumes(uninterrupted, tmp_path):
    seen = []

    def progress(status):
        seen.append(status)
        if len(seen) == 5:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(cluster(), out=tmp_path, seed=3, progress=progress, **SMALL)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(seen) == 5
    sampler = train(cluster(), out=tmp_path, resume=True, max_minutes=0.0)
    assert sampler.metadata["n_updates"] == 6
    finish(cluster(), tmp_path)
    assert_same(result(tmp_path), uninterrupted)


def test_training_runs_outside_the_main_thread():
    results = []
    settings = {**SMALL, "polish_steps": 1}
    thread = threading.Thread(target=lambda: results.append(train(cluster(), **settings)))
    thread.start()
    thread.join()
    assert results[0].metadata["finished"]


def test_same_seed_same_result_and_other_seed_another(uninterrupted, tmp_path):
    torch.manual_seed(123)  # the global generator plays no part
    state = torch.get_rng_state()
    train(cluster(), out=tmp_path / "same", seed=3, **SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(result(tmp_path / "same"), uninterrupted)
    train(cluster(), out=tmp_path / "other", seed=4, **SMALL)
    others = result(tmp_path / "other")[0]
    assert any(not torch.equal(others[name], value) for name, value in uninterrupted[0].items())


def test_finished_run_resumes_to_itself(tmp_path):
    train(cluster(), out=tmp_path, **SMALL)
    before = result(tmp_path)
    finish(cluster(), tmp_path)
    assert_same(result(tmp_path), before)


def test_pace_is_measured_at_the_end_and_only_there(monkeypatch, tmp_path):
    monkeypatch.setattr("boltztilt.sampling.pace.N_BLOCKS", 4)  # cheaper
    seen = []
    settings = {**SMALL, "pace_structures": 3}
    assert "pace" not in train(cluster(), out=tmp_path, max_minutes=0.0, **settings).metadata
    train(cluster(), out=tmp_path, resume=True, progress=seen.append)
    assert seen[-1].stage == "pace"
    assert seen[-1].step == seen[-1].n_steps
    kept = load_weights(tmp_path / "weights.safetensors")[1]
    assert len(kept["pace"]) == seen[-1].n_steps + 1


def test_finished_training_is_kept_when_its_pace_cannot_be_measured(monkeypatch, tmp_path):
    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Sampler, "paced", fail)
    with pytest.raises(KeyboardInterrupt):
        train(cluster(), out=tmp_path, pace_structures=3, **SMALL)
    kept = Sampler.load(tmp_path / "weights.safetensors", cluster())
    assert kept.metadata["finished"]
    assert math.isfinite(kept.sample(20).log_z.value)


def test_sampler_of_a_run_folder_is_the_trained_one(tmp_path):
    trained = train(cluster(), out=tmp_path, **SMALL)
    loaded = Sampler.load(tmp_path / "weights.safetensors", cluster())
    first, second = (sampler.sample(20, seed=1) for sampler in (trained, loaded))
    assert torch.equal(first.positions, second.positions)
    assert torch.equal(first.log_density, second.log_density)


@pytest.fixture
def started(tmp_path):
    train(cluster(), out=tmp_path, seed=3, max_minutes=0.0, **SMALL)
    return tmp_path


@pytest.mark.parametrize("damage", [b"", b"no checkpoint at all", None])
def test_corrupt_state_is_refused(damage, started):
    path = started / "checkpoint" / "state.pt"
    path.write_bytes(path.read_bytes()[:-200] if damage is None else damage)
    with pytest.raises(ValueError, match=r"state.pt is not a readable training state"):
        train(cluster(), out=started, resume=True)


def test_state_of_another_program_or_network_is_refused(started):
    path = started / "checkpoint" / "state.pt"
    state = torch.load(path, weights_only=True)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="is not the training state of a boltztilt run"):
        train(cluster(), out=started, resume=True)
    torch.save({**state, "field": {}}, path)
    with pytest.raises(ValueError, match=r"state.pt does not belong to this recipe"):
        train(cluster(), out=started, resume=True)


def test_missing_checkpoint_is_refused(started):
    (started / "checkpoint" / "state.pt").unlink()
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train(cluster(), out=started, resume=True)


def test_resuming_refuses_changes_and_other_systems(started, tmp_path):
    with pytest.raises(ValueError, match=r"keeps its recipe, but polish_steps was given"):
        train(cluster(), out=started, resume=True, polish_steps=9)
    other = System("other", Harmonic(3, 3.0, 2))
    with pytest.raises(ValueError, match="a run of 'cluster', not of 'other'"):
        train(other, out=started, resume=True)
    with pytest.raises(FileNotFoundError, match="holds no run to resume"):
        train(cluster(), out=started / "elsewhere", resume=True)
    with pytest.raises(ValueError, match="needs the run folder"):
        train(cluster(), resume=True)


WELL = """
name = "well"
[potential]
kind = "harmonic"
n_atoms = 3
stiffness = 2.0
"""


def test_resuming_refuses_a_file_that_describes_something_else(tmp_path):
    file, folder = tmp_path / "well.toml", tmp_path / "run"
    file.write_text(WELL)
    train(file, out=folder, max_minutes=0.0, **SMALL)
    file.write_text(WELL.replace("2.0", "3.0"))
    with pytest.raises(ValueError, match=r"describes something else than .*run.system.toml"):
        train(file, out=folder, resume=True)
    file.write_text(f'description = "as before"\n{WELL}\n[recipe]\npolish_steps = 1')
    assert train(file, out=folder, resume=True, max_minutes=0.0).metadata["n_updates"] == 2


def test_a_run_goes_on_and_starts_again_with_the_file_it_keeps(tmp_path):
    file, folder = tmp_path / "mine.toml", tmp_path / "run"
    file.write_text(WELL.replace('name = "well"', ""))
    train(file, out=folder, max_minutes=0.0, **SMALL)
    sampler = train(folder / "system.toml", out=folder, resume=True, max_minutes=0.0)
    assert (sampler.system.name, sampler.metadata["n_updates"]) == ("mine", 2)
    sampler = train(folder / "system.toml", out=folder, overwrite=True, max_minutes=0.0, **SMALL)
    assert sampler.metadata["n_updates"] == 1
    assert (folder / "system.toml").read_text() == file.read_text()


def test_overwriting_a_run_forgets_its_system(tmp_path):
    (tmp_path / "well.toml").write_text(WELL)
    train(tmp_path / "well.toml", out=tmp_path / "run", max_minutes=0.0, **SMALL)
    assert Sampler.load(tmp_path / "run").system.name == "well"
    train(cluster(), out=tmp_path / "run", overwrite=True, max_minutes=0.0, **SMALL)
    with pytest.raises(ValueError, match="'cluster', which no file describes"):
        Sampler.load(tmp_path / "run")


def test_a_kept_file_of_another_system_is_refused(tmp_path):
    train(cluster(), out=tmp_path, max_minutes=0.0, **SMALL)
    (tmp_path / "system.toml").write_text(WELL)
    with pytest.raises(ValueError, match="trained for 'cluster', not for 'well'"):
        Sampler.load(tmp_path)


def test_alignment_is_refused_in_an_external_field():
    fixed = System("fixed", Harmonic(3, 3.0, 2, centered=False))
    with pytest.raises(ValueError, match="coupling = 'independent'"):
        train(fixed, **SMALL)
    small = {**SMALL, "coupling": "independent"}
    assert train(fixed, max_minutes=0.0, **small).metadata["n_updates"] == 1


def test_existing_run_is_kept_unless_it_is_to_be_overwritten(tmp_path):
    train(cluster(), out=tmp_path, seed=3, max_minutes=0.0, **SMALL)
    before = (tmp_path / "checkpoint" / "state.pt").read_bytes()
    with pytest.raises(FileExistsError, match=r"resume=True.*overwrite=True"):
        train(cluster(), out=tmp_path, **SMALL)
    assert (tmp_path / "checkpoint" / "state.pt").read_bytes() == before
    sampler = train(cluster(), out=tmp_path, overwrite=True, max_minutes=0.0, **SMALL)
    assert sampler.metadata["n_updates"] == 1


def test_bad_settings_leave_no_folder_behind(tmp_path):
    folder = tmp_path / "run"
    for settings, error in (
        ({"ces": 0.5}, ValueError),
        ({"cess": "high"}, TypeError),
        ({"network": {"kind": "transformer"}}, ValueError),
        ({"network": {"kind": "perceptron", "width": 3}}, ValueError),
    ):
        with pytest.raises(error):
            train(cluster(), out=folder, **settings)
    assert not folder.exists()


def test_particles_carried_from_rung_to_rung_resume_exactly(tmp_path):
    """Rollouts at every third rung and none while polishing; stopped within the ladder."""
    settings = {**SMALL, "rungs_per_rollout": 3, "polish_rollout_every": 0}
    train(cluster(), out=tmp_path / "whole", seed=3, **settings)
    train(cluster(), out=tmp_path / "cut", seed=3, max_minutes=0.0, **settings)
    for _ in range(4):
        train(cluster(), out=tmp_path / "cut", resume=True, max_minutes=0.0)
    finish(cluster(), tmp_path / "cut")
    assert_same(result(tmp_path / "whole"), result(tmp_path / "cut"))


def test_stochastic_training_makes_a_conditional_mean():
    """The recipe of the system, changed for stochastic sampling and then by single settings."""
    network = {"n_hidden": 6, "n_channels": 2}
    system = System(
        "well",
        Harmonic(3, 3.0),
        recipe={**SMALL, "network": {"kind": "local_density", **network}},
    )
    changes = {"polish_steps": 4, "network": {"n_layers": 2, "n_channels": 3}}
    sampler = train(system, stochastic=True, **changes)
    recipe = sampler.metadata["recipe"]
    assert (recipe["coupling"], recipe["likelihood_steps"]) == ("independent", 0)
    assert (recipe["polish_steps"], recipe["batch_size"]) == (4, SMALL["batch_size"])
    expected = {"kind": "unrolled", "n_layers": 2, "n_hidden": 6, "n_channels": 3}
    assert recipe["network"] == expected
    ensemble = sampler.sample(5, n_steps=2, stochastic=True)
    assert torch.isfinite(ensemble.energies).all()


def test_likelihood_by_forces_resumes_exactly(tmp_path):
    """Along paths the likelihood learns through a copy of the field, which no file keeps."""
    settings = {**SMALL, "likelihood_forces": True, "polish_steps": 1}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(cluster(), whole, **settings)
    train(cluster(), parts, max_minutes=0.0, **settings)
    while not train(cluster(), parts, max_minutes=0.0, resume=True).metadata["finished"]:
        pass
    assert_same(result(parts), result(whole))
