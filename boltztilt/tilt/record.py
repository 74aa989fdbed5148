"""The record of a run, which weights carry: what was trained, how, and what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import boltztilt
from boltztilt.hardware import hardware

if TYPE_CHECKING:
    from boltztilt.tilt.run import TrainingRun


def record_of(run: TrainingRun) -> dict[str, Any]:
    """The system, the cost so far, the recipe, and the record of the run that it started from."""
    record = {
        "system": run.system.name,
        "n_atoms": run.system.n_atoms,
        "convention": run.system.convention,
        "finished": run.finished,
        "a": run.progress["a"],
        "n_rungs": run.progress["rung"],
        "n_updates": run.progress["n_updates"],
        "n_energy": run.potential.n_energy,
        "n_force": run.potential.n_force,
        "n_nonfinite": run.potential.n_nonfinite,
        "n_skipped_updates": run.progress["n_skipped"],
        "n_stray_updates": run.progress["n_strays"],
        "log_z_ladder": run.progress["log_z"],
        "wall_time": run.progress["seconds"],
        "seed": run.seed,
        "hardware": hardware(run.device),
        "versions": {"boltztilt": boltztilt.__version__, "torch": torch.__version__},
        "recipe": run.recipe.to_mapping(),
        "examples": run.examples,
    }
    if run.start is not None:
        record["start"] = run.start.metadata
    return record
