"""What command-line arguments mean: samplers, devices, recipe overrides, run folders."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boltztilt.error_words import first_line
from boltztilt.run_folder import KEPT_SYSTEM, holds_run, refuse_run_files

if TYPE_CHECKING:
    from boltztilt.sampling.sampler import Sampler
    from boltztilt.systems.system import System

OPTIONS = ("seed", "device")
"""What looks like entries of a recipe and has options of its own."""


def open_sampler(target: str | Path, device: str = "cpu", system: str | None = None) -> Sampler:
    """The sampler of a system's shipped weights, a run folder or a weights file."""
    from boltztilt.sampling.sampler import Sampler
    from boltztilt.systems.system import load_system

    check_device(device)
    if system and Path(system).is_dir():  # a run folder, which keeps the file of its system
        system = str(Path(system) / KEPT_SYSTEM)
    sampler = Sampler.load(target, load_system(system) if system else None)
    sampler.field.to(device)
    return sampler


def checked_output(name: str, output: Path | None, force: bool) -> list[Path]:
    """The files of a system's structures, the given one first, if each can be written."""
    from boltztilt.sampling.ensemble_files import check_output

    return check_output(output or default_output(name), overwrite=force)


def default_output(name: str) -> Path:
    """The trajectory of a system or a run, named so that what describes it keeps its own name.

    A topology is written beside it, and a molecule's own PDB file is often called as its TOML file.
    """
    path = Path(name)
    own = "_samples" if path.suffix or path.is_dir() else ""
    return Path(f"{path.resolve().stem}{own}.dcd")


def check_trajectory(paths: Sequence[Path], system: System) -> None:
    """Raises, before any work, where the system's structures cannot be kept in the files."""
    from boltztilt.export import check_dimensions

    system.refuse_own_files(paths)
    if {path.suffix for path in paths} - {".npz", ".json"}:
        check_dimensions(system.n_dims)
        system.topology()


def check_device(device: str) -> None:
    """Raises ValueError where torch cannot use the device."""
    import torch

    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise ValueError(f"--device {device} cannot be used here ({reason}); try cpu") from error


def read_overrides(texts: list[str]) -> dict[str, Any]:
    """The recipe entries of `key=value` arguments; `table.key=value` sets one in a table."""
    overrides: dict[str, Any] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        *tables, name = key.split(".")
        if not equals or not name or not value:
            raise ValueError(f"--set {text}: expected key=value, such as --set n_particles=512")
        if key in OPTIONS:
            raise ValueError(f"--set {text}: {key} is no entry of the recipe; give --{key} {value}")
        target = overrides
        for table in tables:
            target = target.setdefault(table, {})
            if not isinstance(target, dict):
                raise ValueError(f"--set {text}: {table} was given as {target!r}, not as a table")
        target[name] = read_value(value)
    return overrides


def read_value(text: str) -> Any:
    """A value as TOML writes it; what is not TOML is text."""
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def check_run_folder(folder: Path, resume: bool, force: bool) -> None:
    """Raises where training would overwrite a run, or where there is none to resume."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; give the folder of the run")
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        raise PermissionError(f"cannot write to {existing}: no permission")
    if resume and not holds_run(folder):
        raise FileNotFoundError(f"{folder} holds no run to resume; train without --resume")
    if not resume and not force:
        refuse_run_files(folder)


def next_command(name: str, folder: Path, device: str) -> str:
    """What to type after an interruption."""
    if not holds_run(folder):
        return "nothing was computed yet: start again"
    words = ["boltztilt", "train", name, "-o", str(folder), "--resume"]
    words += ["--device", device] if device != "cpu" else []
    return f"continue with: {shlex.join(words)}"


def partial_path(output: Path) -> Path:
    """The folder that holds what a molecule's reference is made of, until that is written."""
    return output.with_suffix(".partial")


def holds_part(partial: Path) -> bool:
    """Whether the folder holds what an interrupted reference has reached."""
    return any(partial.glob("*.pt"))


def check_partial(output: Path, resume: bool, force: bool) -> Path:
    """The folder of an interrupted reference, after checking that it is there only if wanted."""
    path = partial_path(output)
    if resume and not holds_part(path):
        raise FileNotFoundError(f"{path} holds nothing to resume; start without --resume")
    if holds_part(path) and not resume and not force:
        raise FileExistsError(
            f"{path} holds an interrupted run; --resume continues it, --force starts again"
        )
    return path


def next_reference_command(name: str, output: Path, n: int, seed: int) -> str:
    """What to type after an interruption of `boltztilt reference`."""
    if not holds_part(partial_path(output)):
        return "nothing was kept yet: start again"
    words = ["boltztilt", "reference", name, "-n", str(n), "-o", str(output)]
    words += ["--seed", str(seed), "--resume", *(["--force"] if output.exists() else [])]
    return f"continue with: {shlex.join(words)}"


def evaluation_folder(target: str, output: Path | None) -> Path:
    """The folder of a report: the given one, the run folder itself, or `NAME_evaluation` here."""
    path = Path(target)
    folder = output or (path if path.is_dir() else Path(f"{path.stem}_evaluation"))
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; give the folder of the report")
    return folder
