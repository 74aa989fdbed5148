"""Writing files so that an interruption never leaves half of one behind, and reading arrays."""

import os
import secrets
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that becomes `path` when the block succeeds.

    The suffix is kept because writers choose their format by it. When the block raises, the
    temporary file is deleted and whatever stood at `path` is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path, overwrite: bool = False) -> Path:
    """Returns `path` as a Path after checking that a file can be written there.

    Raises:
        FileNotFoundError: the folder does not exist.
        FileExistsError: the file exists and `overwrite` is false.
        IsADirectoryError, PermissionError: nothing can be written there.
    """
    path = Path(path)
    folder = path.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {folder} does not exist")
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder, a file name is needed")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists already: choose another name, or replace it with --force "
            "(overwrite=True in Python)"
        )
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise PermissionError(f"cannot write {path}: no permission")
    return path


def read_arrays(path: str | Path, required: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, which must hold the required ones; pickles are refused."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if not zipfile.is_zipfile(path):
        ours = "it is damaged or incomplete"
        others = "give the .npz that is written beside trajectories"
        raise ValueError(
            f"{path} is not an .npz file of samples: {ours if path.suffix == '.npz' else others}"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not an .npz file of samples: {error}") from error
    missing = [name for name in required if name not in arrays]
    if missing:
        raise ValueError(f"{path} holds no {', '.join(missing)}: it was written by another program")
    return arrays
