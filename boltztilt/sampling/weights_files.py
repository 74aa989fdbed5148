"""Which file of weights a system, a run folder or a path means, and which system weights mean."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from boltztilt.energy import check_same_energies
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


def examples_of(system: System) -> dict[str, list]:
    """A few structures with their energies in kT, which tell systems of one name apart."""
    positions = system.examples()
    energies = system.potential.energy(positions).double()
    return {"positions": positions.tolist(), "energies": energies.tolist()}


def check_system(path: Path, metadata: Mapping[str, Any], system: System) -> None:
    """Raises ValueError where weights of such a record were trained for another system."""
    if (trained_for := metadata["system"]) != system.name:
        raise ValueError(f"{path} was trained for {trained_for!r}, not for {system.name!r}")
    n_atoms = metadata.get("n_atoms", system.n_atoms)
    if n_atoms != system.n_atoms:
        raise ValueError(
            f"{path} was trained for {n_atoms} atoms, but {system.name!r} has "
            f"{system.n_atoms}: give the system it was trained for, or train anew "
            "(Sampler.transferred carries weights of alike atoms over)"
        )
    if (examples := metadata.get("examples")) is None:
        return
    known = [math.nan if each is None else each for each in examples["energies"]]
    computed = system.potential.energy(torch.tensor(examples["positions"], dtype=torch.float32))
    stored = torch.tensor(known, dtype=torch.float64)
    check_same_energies(path, system, stored, computed.double())
