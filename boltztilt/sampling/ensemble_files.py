"""Ensembles as files: a trajectory with its topology, all numbers, a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from boltztilt.files import atomic_path, check_writable
from boltztilt.report import plain, write_report

if TYPE_CHECKING:
    from boltztilt.sampling.ensemble import Ensemble

SUFFIXES = (".npz", ".dcd", ".xtc", ".pdb")
PER_STRUCTURE = ("log_density", "path_log_weights", "groups")  # each None or (batch,)


def check_output(path: str | Path, overwrite: bool = False) -> list[Path]:
    """The paths that saving to `path` writes, after checking that each can be written."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"cannot write {path}: its suffix must be one of {', '.join(SUFFIXES)}")
    others = [path.with_suffix(suffix) for suffix in (".pdb", ".npz", ".report.json")]
    if path.suffix == ".npz":
        others = others[1:]
    paths = list(dict.fromkeys([path, *others]))
    return [check_writable(each, overwrite) for each in paths]


def write_ensemble(ensemble: Ensemble, path: str | Path, overwrite: bool) -> list[Path]:
    """The paths of the files of `Ensemble.save`, the numbers and the report written first."""
    paths = check_output(path, overwrite)
    ensemble.system.refuse_own_files(paths)
    trajectory, numbers = paths[0], paths[0].with_suffix(".npz")
    _write_numbers(ensemble, numbers)
    write_report(trajectory.with_suffix(".report.json"), ensemble.report())
    if trajectory.suffix == ".npz":
        return paths
    from boltztilt.export import write_topology, write_trajectory

    try:
        write_trajectory(trajectory, ensemble.positions, ensemble.system)
    except (ValueError, OSError) as error:
        kind = ValueError if isinstance(error, ValueError) else OSError
        raise kind(f"{error}; all numbers are in {numbers}") from error
    if trajectory.suffix != ".pdb":
        write_topology(trajectory.with_suffix(".pdb"), ensemble.system, ensemble.positions)
    return paths


def _write_numbers(ensemble: Ensemble, path: Path) -> None:
    arrays = {"positions": ensemble.positions.numpy(), "energies": ensemble.energies.numpy()}
    arrays |= {
        name: values.numpy()
        for name in PER_STRUCTURE
        if (values := getattr(ensemble, name)) is not None
    }
    if ensemble.has_weights:
        arrays["log_weights"] = ensemble.log_weights.numpy()
    arrays["system"] = np.array(ensemble.system.name)
    arrays["info"] = np.array(json.dumps(plain(ensemble.info)))
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
