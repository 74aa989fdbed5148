"""Weights and training states: round trips, interrupted writing, damaged and foreign files."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from boltztilt.checkpoint import load_state, load_weights, save_state, save_weights

METADATA = {"system": "dw4", "seed": 3, "wall_time": 1.5, "recipe": {"network": {"n_hidden": 8}}}


def tensors() -> dict[str, torch.Tensor]:
    return {
        "single": torch.arange(6.0).view(2, 3).T,
        "double": torch.tensor([1 / 3], dtype=torch.float64),
        "whole": torch.tensor([1, 2]),
    }


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_weights_come_back_exactly(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(path, tensors(), METADATA)
    weights, metadata = load_weights(path)
    assert metadata == METADATA
    for name, tensor in tensors().items():
        assert weights[name].dtype == tensor.dtype
        assert torch.equal(weights[name], tensor)


def test_metadata_may_hold_numbers_of_numpy_and_torch(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(path, tensors(), {"a": np.float64(0.5), "b": torch.tensor(2), "c": (1, None)})
    assert load_weights(path)[1] == {"a": 0.5, "b": 2, "c": [1, None]}


def test_training_state_comes_back_exactly(tmp_path):
    path = tmp_path / "state.pt"
    generator = torch.Generator().manual_seed(5)
    state = {"progress": {"rung": 3, "a": 0.1}, "weights": tensors(), "rng": generator.get_state()}
    save_state(path, state)
    loaded = load_state(path)
    assert loaded["progress"] == state["progress"]
    assert torch.equal(loaded["rng"], state["rng"])
    assert torch.equal(loaded["weights"]["single"], state["weights"]["single"])


def test_weights_can_be_read_by_whoever_may_read_new_files(tmp_path):
    (tmp_path / "plain").touch()
    save_weights(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, METADATA)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("what", ["weights", "state"])
def test_interrupted_writing_leaves_the_file_before_it(what, tmp_path, monkeypatch):
    path = tmp_path / "file.safetensors"

    def write(number: int) -> None:
        if what == "weights":
            save_weights(path, {"a": torch.tensor([number])}, METADATA)
        else:
            save_state(path, {"progress": number})

    write_bytes = Path.write_bytes

    def half_a_file(_, target) -> None:
        write_bytes(target, b"half")
        raise KeyboardInterrupt

    write(1)
    before = path.read_bytes()
    monkeypatch.setattr(Path, "write_bytes", lambda target, data: half_a_file(data, target))
    monkeypatch.setattr(torch, "save", half_a_file)
    with pytest.raises(KeyboardInterrupt):
        write(2)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kept", [0, 4, 50, -1], ids=lambda kept: f"{kept} bytes")
def test_truncated_files_are_refused(kept, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(path, tensors(), METADATA)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_weights(path)
    path = tmp_path / "state.pt"
    save_state(path, {"progress": 1, "weights": tensors()})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="not a readable training state"):
        load_state(path)


@pytest.mark.parametrize("content", [b"{}", b"a text\n" * 50, bytes(range(256)) * 8, b"PK\x03\x04"])
def test_files_of_another_kind_are_refused(content, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_weights(path)
    with pytest.raises(ValueError, match="not a readable training state"):
        load_state(path)


def test_weights_of_another_program_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(tensors() | {"single": torch.ones(2)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="no boltztilt weights"):
        load_weights(path)


def test_states_of_another_program_are_refused(tmp_path):
    path = tmp_path / "other.pt"
    for foreign in ({"model": tensors()}, tensors()["single"]):
        torch.save(foreign, path)
        with pytest.raises(ValueError, match="not the training state"):
            load_state(path)


def test_nothing_but_tensors_and_plain_values_is_loaded(tmp_path):
    """A pickle that would run a command is refused before it does."""
    path, trace = tmp_path / "state.pt", tmp_path / "trace"
    torch.save({"progress": Trap(trace)}, path)
    with pytest.raises(ValueError, match="not a readable training state"):
        load_state(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such weights file: .*absent\.safetensors"):
        load_weights(tmp_path / "absent.safetensors")
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        load_state(tmp_path / "absent.pt")


def test_a_full_disk_leaves_the_state_before(small_disk, tmp_path):
    path = tmp_path / "state.pt"
    save_state(path, {"progress": 1})
    with pytest.raises(OSError, match=r"cannot write .*state\.pt: "):
        save_state(path, {"progress": 2, "large": torch.zeros(100_000)})
    assert load_state(path) == {"progress": 1}
