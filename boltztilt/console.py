"""What the command line shows: progress bars, tables, lists of files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from boltztilt.sampling.ensemble import Ensemble
    from boltztilt.systems.system import System
    from boltztilt.tilt.status import TrainingStatus

ProgressCallback = Callable[[int, int], None]

SECONDS_BETWEEN_LINES = 30.0
SMALLEST_TELLING_FRACTION = 0.01

RUN_COSTS = ("n_updates", "n_energy", "wall_time")
"""Entries of the record of a run that tell what it cost."""


def standard_output() -> Console:
    return Console(highlight=False, soft_wrap=True)


def standard_error(quiet: bool = False) -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)


class RateColumn(ProgressColumn):
    """Units done per second, such as `312 samples/s`."""

    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {self.unit}/s" if speed else f"- {self.unit}/s", style="cyan")


@contextmanager
def counting_bar(title: str, unit: str, quiet: bool = False) -> Iterator[ProgressCallback]:
    """A callback `(done, total)` that drives a bar with the rate and the time left."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(unit),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=standard_error(), disable=quiet) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class TrainingBar:
    """A progress callback for training: stage, rung, a, CESS, loss, ESS and time left.

    On a terminal it is one live bar; elsewhere (a log file, a batch job) it is one plain line
    at each new rung, at most every half minute.
    """

    def __init__(self, quiet: bool = False):
        self.console = standard_error(quiet)
        self.last_line = -float("inf")
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        live = self.console.is_terminal and not quiet
        self.progress = Progress(*columns, console=self.console, disable=not live)
        self.task = self.progress.add_task("starting", total=1.0, left="")

    def __enter__(self) -> TrainingBar:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def __call__(self, status: TrainingStatus) -> None:
        words, left = training_words(status), time_left(status)
        if not self.progress.disable:
            self.progress.update(
                self.task, description=words, completed=status.fraction_done, left=left
            )
        elif time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            self.console.print(f"{words}  {left}")


def training_words(status: TrainingStatus) -> str:
    """One line on where training stands; quantities not measured yet are left out."""
    words = [f"{status.stage} rung {status.rung}", f"a {status.a:.3g}"]
    for label, value, layout in (
        ("CESS", status.cess, ".2f"),
        ("loss", status.loss, ".4g"),
        ("ESS", status.ess, ".1%"),
        ("<U>", status.mean_energy, ".2f"),
        ("ancestors", float(status.n_ancestors), ".0f"),
        ("mirrored", status.mirrored, ".1%"),
    ):
        if value == value:
            words.append(f"{label} {value:{layout}}")
    if status.n_strays:
        words.append(f"stray losses {status.n_strays}")
    return "  ".join(words)


def time_left(status: TrainingStatus) -> str:
    """Text such as `left 0:12:05`, once enough is done to tell: the first updates compile."""
    if status.fraction_done < SMALLEST_TELLING_FRACTION:
        return ""
    return f"left {clock(status.seconds * (1.0 / status.fraction_done - 1.0))}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, such as `1:02:03`."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def print_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Prints names and values in two columns."""
    words = Text(title)
    table = Table(title=words, show_header=False, title_justify="left", box=None, padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    standard_output().print(table)


def print_files(paths: Sequence[Path]) -> None:
    """Prints one line for each written file, with its size."""
    console = standard_output()
    for path in paths:
        console.print(Text(f"wrote {path} ({file_size(float(path.stat().st_size))})"))


def file_size(n_bytes: float) -> str:
    """A size such as `1.3 MB`."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def print_columns(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table with one line for each row."""
    table = Table(*names, box=None, padding=(0, 2), header_style="bold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    standard_output().print(table)


def as_words(value: object) -> str:
    """A value as short text: five digits of a number, value ± error, entries of a table."""
    if is_estimate(value):
        return " ± ".join(as_words(number) for number in value.values())
    if isinstance(value, dict):
        return ", ".join(f"{spaced(key)} {as_words(entry)}" for key, entry in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(value)


def is_estimate(value: object) -> TypeGuard[dict[str, float]]:
    """Whether the value is an estimate as reports write it."""
    return isinstance(value, dict) and value.keys() == {"value", "error"}


def spaced(key: object) -> str:
    return str(key).replace("_", " ")


def system_words(system: System) -> tuple[str, ...]:
    shipped = "yes" if system.weights_path() else "no"
    return (system.name, str(system.n_atoms), str(system.n_dims), shipped, system.title)


def system_rows(system: System) -> list[tuple[str, str]]:
    """Names and values that describe a system."""
    rows = [
        ("title", system.title),
        ("description", system.description),
        ("energy", system.convention),
        ("atoms", f"{system.n_atoms} in {system.n_dims} dimensions"),
        ("base", base_words(system)),
    ]
    moments = system.reference_energy
    if moments is not None:
        words = f"{moments.mean:.3f} ± {moments.error:.3f} kT, standard deviation {moments.sd:.2f}"
        rows.append(("reference <U>", words))
    return [(label, value) for label, value in rows if value]


def base_words(system: System) -> str:
    """The base of a system in words."""
    if system.base_kind == "bonds":
        return f"Gaussian of bonds, standard deviation {system.base_std:g} nm on each axis"
    return f"Gaussian of standard deviation {system.base_std:g}"


def sample_rows(ensemble: Ensemble) -> list[tuple[str, str]]:
    """Names and values of the figures printed after sampling."""
    rows = [("structures", str(len(ensemble.energies)))]
    mean = energy_words(ensemble.mean_energy(weighted=False))
    raw = f"{mean}, median {ensemble.median_energy:.2f}"
    if ensemble.any_weight:
        rows += [
            ("ESS", f"{ensemble.ess:.1%} ({ensemble.ess * len(ensemble.energies):.0f} effective)"),
            *basin_rows(ensemble),
            *group_rows(ensemble),
            ("<U> raw", raw),
            ("<U> reweighted", energy_words(ensemble.mean_energy(weighted=True))),
            ("log Z", str(ensemble.log_z)),
        ]
    else:
        rows.append(("<U> raw", raw))
    if "mirrored" in ensemble.info:
        share = as_words(ensemble.info["mirrored"])
        rows.append(("mirror images", f"{share} of the structures, 0.5 expected"))
    if "integration_error" in ensemble.info:
        error = f"{ensemble.info['integration_error']:.2g}"
        words = f"{error}, weighted rms change of log q at half the step"
        rows.append(("integration error", words))
    if ensemble.info.get("folded"):
        rows.append(("folds", f"{ensemble.info['folded']} structures, given no weight"))
    return rows


def refined_rows(ensemble: Ensemble) -> list[tuple[str, str]]:
    """Names and values of the figures printed after refinement, if there was any."""
    if "refine_steps" not in ensemble.info:
        return []
    return [("<U> refined", energy_words(ensemble.mean_energy(weighted=False)))]


def cost_rows(ensemble: Ensemble) -> list[tuple[str, str]]:
    """What the structures cost, whatever was done to them."""
    return [
        ("energy calls", f"{ensemble.info['n_energy']:,}"),
        ("time", f"{ensemble.info['wall_time']:.1f} s"),
    ]


def basin_rows(ensemble: Ensemble) -> list[tuple[str, str]]:
    """Basin populations of each residue of a molecule, to which the ESS is blind."""
    if ensemble.system.molecule is None:
        return []
    from boltztilt.analysis.conformations import basin_populations, residue_torsions

    found = residue_torsions(ensemble.positions, ensemble.system)
    return [
        (
            f"basins of {name}",
            as_words(basin_populations(angles, ensemble.weights, ensemble.groups)),
        )
        for name, angles in found.items()
    ]


def group_rows(ensemble: Ensemble) -> list[tuple[str, str]]:
    """What structures in groups are worth; nothing where all are independent."""
    if ensemble.groups is None:
        return []
    n_groups = ensemble.n_groups
    if n_groups == 1:
        worth = "unknown, like all errors: one group only, ask for more"
    else:
        spread = math.sqrt(2 / (n_groups - 1))
        worth = f"about {ensemble.n_independent:.0f} (within {spread:.0%}), from <U> of the groups"
    descent = f"{ensemble.info['n_ancestors']} draws of the base have descendants here"
    return [
        ("groups", f"{n_groups}, each with one weight; errors are those over groups"),
        ("independent", worth),
        ("ancestors", descent),
    ]


def energy_words(estimate: Any) -> str:
    return f"{estimate} kT"


UNPRINTED = ("start", "pace", "examples")
"""Entries of a record of training that are too long to be printed."""


def weight_rows(metadata: dict[str, Any]) -> list[tuple[str, str]]:
    """How weights were made: the last run in full, and a row for each one that it started from."""
    from boltztilt.checkpoint import runs_before

    rows = report_rows(metadata, without=UNPRINTED)
    for earlier in runs_before(metadata):
        costs = {key: earlier[key] for key in RUN_COSTS if key in earlier}
        rows.append(("started from", f"{earlier.get('system')}: {as_words(costs)}"))
    if "pace" in metadata:
        n_parts = len(metadata["pace"]) - 1
        rows.append(("pace", f"steps of the solver placed by errors measured in {n_parts} parts"))
    return rows


def report_rows(report: dict[str, Any], without: Collection[str] = ()) -> list[tuple[str, str]]:
    """Names and values of a report, one row for each innermost table."""
    rows: list[tuple[str, str]] = []
    for key, value in report.items():
        nested = isinstance(value, dict) and any(
            isinstance(entry, dict) and not is_estimate(entry) for entry in value.values()
        )
        if key in without:
            continue
        if nested:
            inner_rows = report_rows(value)
            rows += [(f"{spaced(key)}, {name}", words) for name, words in inner_rows]
        else:
            rows.append((spaced(key), as_words(value)))
    return rows
