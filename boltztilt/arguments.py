"""What command-line arguments mean: samplers, devices, recipe overrides, run folders."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    sampler = Sampler.load(target, load_system(system) if system else None)
    sampler.field.to(device)
    return sampler


def checked_output(name: str, output: Path | None, force: bool) -> Path:
    """Where a system's structures go, after checking that they can be written there."""
    from boltztilt.sampling.ensemble_files import check_output

    path = output or Path(f"{Path(name).resolve().stem}.dcd")
    check_output(path, overwrite=force)
    return path


def check_trajectory(path: Path, system: System) -> None:
    """Raises ValueError, before any work, where a file cannot hold the system's structures."""
    from boltztilt.export import check_dimensions

    if path.suffix != ".npz":
        check_dimensions(system.n_dims)


def check_device(device: str) -> None:
    """Raises ValueError where torch cannot use the device."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split(chr(10))[0]
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
    if holds_run(folder) and not resume and not force:
        raise FileExistsError(
            f"{folder} already holds a run; --resume continues it, --force starts again"
        )


def holds_run(folder: Path) -> bool:
    """Whether training can be resumed in the folder."""
    return (folder / "checkpoint" / "state.pt").exists()


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


def check_partial(output: Path, resume: bool, force: bool) -> Path:
    """The folder of an interrupted reference, after checking that it is there only if wanted."""
    path = partial_path(output)
    if resume and not path.exists():
        raise FileNotFoundError(f"no {path}: there is nothing to resume; start without --resume")
    if path.exists() and not resume and not force:
        raise FileExistsError(
            f"{path} holds an interrupted run; --resume continues it, --force starts again"
        )
    return path


def next_reference_command(name: str, output: Path, n: int, seed: int) -> str:
    """What to type after an interruption of `boltztilt reference`."""
    if not partial_path(output).exists():
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
