"""Training a sampler from the energy alone: up the tilt ladder, then polishing at a = 1.

Polishing matches the flow to particles of the target and, in the end, maximises their likelihood.
"""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from boltztilt.checkpoint import load_state
from boltztilt.files import atomic_path
from boltztilt.run_folder import KEPT_SYSTEM, refuse_other_copies, refuse_run_files
from boltztilt.sampling.sampler import Sampler
from boltztilt.sampling.weights_files import with_kept_name
from boltztilt.systems.system import System, load_system
from boltztilt.tilt.recipe import STOCHASTIC, Recipe, load_recipe, merged
from boltztilt.tilt.run import TrainingRun, state_path
from boltztilt.tilt.status import TrainingStatus
from boltztilt.whole_numbers import seeded

BESIDE_THE_LAW = (
    *("name", "title", "description", "convention"),
    *("export", "reference_energy", "recipe"),
)
"""What the file of a system may tell otherwise than the copy in the folder of a run."""

ProgressCallback = Callable[[TrainingStatus], None]


def train(
    system: System | str | Path,
    out: str | Path | None = None,
    seed: int = 0,
    resume: bool = False,
    max_minutes: float | None = None,
    progress: ProgressCallback | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    stochastic: bool = False,
    **overrides: Any,
) -> Sampler:
    """A sampler trained for the system, from a Gaussian and the energy alone.

    Args:
        system: a System, its name, or the path of its TOML file.
        out: run folder for recipe, log, checkpoints and weights; None keeps nothing.
        seed: of every random number.
        resume: continue the run in `out` to the result of an uninterrupted run. The run keeps its
            recipe and its seed.
        max_minutes: stop after this time; what was reached is saved and can be resumed.
        progress: called with a TrainingStatus after every update.
        overwrite: replace a run that `out` holds.
        stochastic: change the system's recipe by `recipe.STOCHASTIC`, for a deeper field that can
            also be sampled with noise on the way. Without effect on a run that is resumed.
        overrides: settings of the recipe (`Recipe`), such as `polish_steps=2000`; those of the
            network are written `network={"n_hidden": 32}` and replace single entries.

    Raises:
        ValueError, TypeError: unknown or impossible settings, a damaged checkpoint, or a run of
            another system that is to be resumed.
        FileExistsError: `out` holds a run that is neither to be resumed nor to be overwritten, or
            another file of the name of one that describes the system.
        KeyboardInterrupt: after SIGINT, once a checkpoint is written.
    """
    system, seed = load_system(system), seeded(seed)
    folder = None if out is None else Path(out)
    if folder is not None and not (resume or overwrite):
        refuse_run_files(folder)
    if resume:
        run = _resumed(system, folder, overrides, device)
    else:
        run = _started(system, folder, seed, overrides, device, stochastic, overwrite)
    deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
    with _interruption() as interrupted:
        while not run.finished:
            run.update()
            if progress is not None:
                progress(run.status())
            late = deadline is not None and time.monotonic() > deadline
            if folder is not None and (interrupted.is_set() or late or run.checkpoint_due()):
                run.save(folder)
            if interrupted.is_set():
                raise KeyboardInterrupt
            if late:
                break
    sampler = run.sampler()
    if folder is not None:
        run.save(folder)
        sampler.save(folder / "weights.safetensors")
    if run.finished and run.recipe.pace_structures:
        sampler = _paced(sampler, run, progress)
        if folder is not None:
            sampler.save(folder / "weights.safetensors")
    return sampler


def _paced(sampler: Sampler, run: TrainingRun, progress: ProgressCallback | None) -> Sampler:
    """The sampler of a finished run at the pace that the recipe wants measured."""

    def advance(done: int, total: int) -> None:
        if progress is not None:
            status = run.status()
            progress(dataclasses.replace(status, stage="pace", step=done, n_steps=total))

    return sampler.paced(run.recipe.pace_structures, run.seed, advance)


def _started(
    system: System,
    folder: Path | None,
    seed: int,
    overrides: dict[str, Any],
    device: str,
    stochastic: bool,
    overwrite: bool,
) -> TrainingRun:
    """A new run, whose recipe and system are kept in the folder."""
    copies = {} if folder is None else _files_to_keep(system)
    contents = {copy: file.read_bytes() for file, copy in copies.items()}
    if folder is not None and not overwrite:
        refuse_other_copies(folder, contents)
    changes = (STOCHASTIC, overrides) if stochastic else (overrides,)
    recipe = Recipe.from_mapping(merged(system.recipe, *changes))
    run = TrainingRun(system, recipe, seed, device)
    run.read_start()
    if folder is None:
        return run
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / "weights.safetensors", folder / KEPT_SYSTEM, state_path(folder)):
        old.unlink(missing_ok=True)
    recipe.save(folder / "recipe.toml", seed, system.name)
    for copy, content in contents.items():  # some may have been read from the folder itself
        (folder / copy).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / copy) as temporary:
            temporary.write_bytes(content)
    run.save(folder)
    return run


def _files_to_keep(system: System) -> dict[Path, str]:
    """The files that describe a system, and where in a run folder they are found again."""
    if system.source is None:
        return {}
    folder = system.source.resolve().parent
    copies = {system.source: KEPT_SYSTEM}
    for file in system.files:
        if not file.resolve().is_relative_to(folder):
            raise ValueError(
                f"{file} does not lie in the folder of {system.source}: a run folder keeps both, "
                "put the file beside the other"
            )
        copies[file] = str(file.resolve().relative_to(folder))
    return copies


def _check_files(system: System, folder: Path) -> None:
    """Raises ValueError where the files of a system say otherwise than those its run keeps."""
    for file, copy in _files_to_keep(system).items():
        kept = folder / copy
        if kept.is_file() and _sampled(kept) != _sampled(file):
            raise ValueError(
                f"{file} describes something else than {kept}, with which the run began: resume "
                f"with {folder / KEPT_SYSTEM}, or start a new run"
            )


def _sampled(file: Path) -> Any:
    """What a file tells about the law that is sampled."""
    if file.suffix != ".toml":
        return file.read_bytes()
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    return {name: entry for name, entry in table.items() if name not in BESIDE_THE_LAW}


def _resumed(
    system: System, folder: Path | None, overrides: dict[str, Any], device: str
) -> TrainingRun:
    """The run in a folder, as its last checkpoint left it."""
    if folder is None:
        raise ValueError("resume=True needs the run folder: pass out=...")
    if overrides:
        raise ValueError(
            f"a resumed run keeps its recipe, but {', '.join(overrides)} was given; start a new "
            "run to change it"
        )
    if not (folder / "recipe.toml").is_file():
        raise FileNotFoundError(f"{folder} holds no run to resume; train without resume first")
    recipe, seed, name = load_recipe(folder / "recipe.toml")
    if system.source is not None and system.source.resolve() == (folder / KEPT_SYSTEM).resolve():
        system = with_kept_name(system, name)
    if name != system.name:
        raise ValueError(f"{folder} holds a run of {name!r}, not of {system.name!r}")
    _check_files(system, folder)
    state = load_state(state_path(folder))
    run = TrainingRun(system, recipe, seed, device)
    try:
        run.restore(state)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{state_path(folder)} does not belong to this recipe: {error}") from error
    return run


@contextmanager
def _interruption() -> Iterator[threading.Event]:
    """An event that the first SIGINT sets, so that a run stops between two updates."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
