"""Where a training run stands: what is shown after every update, and what its log keeps."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boltztilt.files import atomic_path
from boltztilt.tilt.recipe import Recipe

LOG_COLUMNS = (
    "stage",
    "rung",
    "a",
    "h",
    "cess",
    "step",
    "loss",
    "acceptance",
    "mean_reward",
    "mean_energy",
    "log_z",
    "n_ancestors",
    "mirrored",
    "n_energy",
    "seconds",
)

DENSITY_COST = 3
"""About how many evaluations of the field its velocity with divergence costs."""

RUNG_COST = 20
"""About how many updates the Markov chains of a rung cost, before any update has been timed."""


@dataclass(frozen=True)
class TrainingStatus:
    """Where a training run stands; passed to the progress callback after every update.

    `loss` is the squared error of the velocity, in the stage "likelihood" -log q with its anchor;
    `n_strays` counts updates with more than ten times as much: many of them in a row tell that the
    field is not stable, and ask for fewer layers or a smaller learning rate.
    `ess` is the Kish fraction of the rung's weights; `cess` and `ess` are NaN beyond the ladder.
    `n_ancestors` counts the draws that the particles of the ladder descend from, `mirrored` is the
    share of a molecule's mirror images among them: far from one half, they have collapsed.
    """

    stage: str
    rung: int
    a: float
    cess: float
    ess: float
    step: int
    n_steps: int
    loss: float
    n_strays: int
    acceptance: float
    mean_energy: float
    n_ancestors: int
    mirrored: float
    fraction_done: float
    seconds: float


def fraction_done(progress: dict[str, Any], recipe: Recipe, dof: int) -> float:
    """Share of the work in updates, the length of the ladder guessed from the dimension.

    A ladder without updates counts by the time it took, once there are updates to compare with.
    """
    evaluations = DENSITY_COST * 4 * recipe.likelihood_solver_steps
    likelihood_cost = evaluations * recipe.likelihood_batch / recipe.batch_size
    expected = 10 + 4 * dof**0.5
    n_rungs = max(expected, progress["rung"] + 1 + 3 * (1 - progress["a"]))
    if progress["stage"] != "ladder":
        n_rungs = progress["rung"]
    after_ladder = recipe.polish_steps + likelihood_cost * recipe.likelihood_steps
    done = progress["n_updates"]
    if progress["stage"] == "likelihood":
        done += (likelihood_cost - 1) * progress["stage_step"]
    if recipe.steps_per_rung:
        return min(1.0, done / max(n_rungs * recipe.steps_per_rung + after_ladder, 1))
    if not done:
        return progress["rung"] * RUNG_COST / (n_rungs * RUNG_COST + max(after_ladder, 1))
    spent = progress["seconds"]
    left = (spent - progress["ladder_seconds"]) * max(after_ladder - done, 0) / done
    return spent / max(spent + left, 1e-9)


def write_log(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Writes rows of `LOG_COLUMNS` as comma-separated values."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(LOG_COLUMNS)
    writer.writerows(rows)
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
