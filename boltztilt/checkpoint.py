"""Weights as safetensors with JSON metadata, and training states for exact resumption."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from boltztilt.error_words import failing_to_write, first_line
from boltztilt.files import atomic_path
from boltztilt.report import plain

FORMAT = "boltztilt-weights-1"
UNREADABLE = (
    RuntimeError,
    OSError,
    ValueError,
    LookupError,
    EOFError,
    AssertionError,
    pickle.UnpicklingError,
    struct.error,
)
"""What torch.load raises for damaged and foreign files, found by feeding it many of them."""


def runs_before(metadata: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The records of the runs from whose weights a run started, the latest first."""
    while metadata := metadata.get("start") or {}:
        yield metadata


def save_weights(path: str | Path, weights: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes the tensors and their metadata to a safetensors file, whole or not at all."""
    header = {"format": FORMAT, "metadata": json.dumps(plain(metadata))}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(contiguous, metadata=header))


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata of a file written by `save_weights`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or was written by another program.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such weights file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path} holds no boltztilt weights (format {header.get('format')!r}, expected "
            f"{FORMAT!r}): give a weights.safetensors written by `boltztilt train`"
        )
    return weights, json.loads(header["metadata"])


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Writes a training state, whole or not at all."""
    with atomic_path(path) as temporary, failing_to_write("torch", RuntimeError):
        torch.save(state, temporary)


def load_state(path: str | Path) -> dict[str, Any]:
    """A training state written by `save_state`; nothing but tensors and plain values is loaded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or was written by another program.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}: nothing to resume; train without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ValueError(f"{path} is not a readable training state: {first_line(error)}") from error
    if not isinstance(state, dict) or "progress" not in state:
        raise ValueError(f"{path} is not the training state of a boltztilt run")
    return state


def load_state_of(path: str | Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A state whose entry "settings" has these values; raises ValueError where it has others."""
    state = load_state(path)
    if other := {key for key in settings if state["settings"].get(key) != settings[key]}:
        words = ", ".join(f"{key} = {state['settings'].get(key)}" for key in sorted(other))
        raise ValueError(f"{path} was made with {words}: resume with the same, or delete it")
    return state
