"""Which file of weights a system, a run folder or a path means."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from boltztilt.run_folder import KEPT_SYSTEM, holds_run
from boltztilt.systems.system import System, available_systems, load_system


def find_weights(target: str | Path | System) -> tuple[Path, System | None]:
    """The weights file meant by a system, name or path, and the system they belong to, if known."""
    if isinstance(target, System):
        return shipped_weights(target), target
    path = Path(target)
    if path.is_dir():
        weights, kept = path / "weights.safetensors", path / KEPT_SYSTEM
        if not weights.is_file():
            how = "continue training there (--resume)" if holds_run(path) else "train there first"
            raise FileNotFoundError(
                f"{path} holds no weights.safetensors: {how}, or give another folder"
            )
        return weights, load_system(kept) if kept.is_file() else None
    if path.suffix == ".safetensors":
        return path, None
    system = load_system(str(target))
    return shipped_weights(system), system


def with_kept_name(system: System, name: str) -> System:
    """The system of a file in a run folder, called as in the run where the file tells no name."""
    nameless = f"{system.name}.toml" == KEPT_SYSTEM
    return dataclasses.replace(system, name=name) if nameless else system


def shipped_weights(system: System) -> Path:
    """The weights that lie beside a system's file; raises FileNotFoundError without any."""
    path = system.weights_path()
    if path is not None:
        return path
    how = "boltztilt.train(system, out=...)"
    if system.source is not None:
        name = system.name if system.name in available_systems() else system.source
        how = f"`boltztilt train {name} -o runs/{system.name}`"
    raise FileNotFoundError(
        f"system {system.name!r} has no trained weights: train them with {how} and sample from "
        "that folder"
    )
