"""What the folder of a training run holds, and when training may write there."""

from collections.abc import Mapping
from pathlib import Path

STATE = Path("checkpoint", "state.pt")
"""Where a run folder keeps the state with which training is resumed."""

KEPT_SYSTEM = "system.toml"
"""What the file of a system is called in the folder of a run."""

RUN_FILES = ("recipe.toml", KEPT_SYSTEM, "log.csv", "weights.safetensors")
"""What training writes into a run folder, beside its state and the files a system names."""


def refuse_run_files(folder: Path) -> None:
    """Raises FileExistsError where training would replace what the folder holds."""
    if holds_run(folder):
        raise FileExistsError(
            f"{folder} already holds a run; --resume continues it, --force starts again "
            "(resume=True, overwrite=True in Python)"
        )
    found = [name for name in RUN_FILES if (folder / name).exists()]
    if found:
        raise FileExistsError(
            f"{folder} already holds {', '.join(found)}, but no state to resume from: choose "
            "another folder, or replace them with --force (overwrite=True in Python)"
        )


def refuse_other_copies(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Raises FileExistsError where copies of a system's files would replace other files."""
    for name, content in contents.items():
        path = folder / name
        if path.exists() and path.read_bytes() != content:
            raise FileExistsError(
                f"{path} exists and differs from the file of the system that a run keeps under "
                "that name: choose another folder, or replace it with --force (overwrite=True in "
                "Python)"
            )


def holds_run(folder: Path) -> bool:
    """Whether training can be resumed in the folder."""
    return (folder / STATE).exists()
