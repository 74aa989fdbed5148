"""Trajectory and topology files through mdtraj, in nm."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from boltztilt.error_words import failing_to_write
from boltztilt.files import atomic_path

if TYPE_CHECKING:
    import mdtraj

    from boltztilt.systems.system import System

SUFFIXES = (".dcd", ".xtc", ".pdb")


def cluster_topology(n_atoms: int, element: str = "Ar") -> "mdtraj.Topology":
    """Returns a topology of single atoms of one element, each a residue, without bonds."""
    import mdtraj

    try:
        kind = mdtraj.element.Element.getBySymbol(element)
    except KeyError as error:
        raise ValueError(
            f"{element!r} is not the symbol of a chemical element, such as 'Ar'"
        ) from error
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    for number in range(1, n_atoms + 1):
        residue = topology.add_residue(kind.symbol.upper(), chain, resSeq=number)
        topology.add_atom(kind.symbol.upper(), kind, residue)
    return topology


def write_trajectory(
    path: str | Path, positions: Float[Tensor, "frames atoms dims"], system: "System"
) -> Path:
    """Returns `path` after writing every configuration as a frame of a DCD, XTC or PDB file.

    DCD keeps float32 precision, XTC and PDB round to 0.001 nm and 0.001 angstrom. Positions in the
    plane get z = 0.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"cannot write {path}: a trajectory's suffix is one of {', '.join(SUFFIXES)}"
        )
    bad = int((~torch.isfinite(positions).flatten(1).all(1)).sum())
    if bad:
        raise ValueError(
            f"cannot write {path}: {bad} of {len(positions)} configurations have non-finite "
            "positions, which only .npz keeps"
        )
    trajectory = _trajectory(positions, system)
    with atomic_path(path) as temporary:
        _save(trajectory, temporary)
    return path


def _save(trajectory: "mdtraj.Trajectory", path: Path) -> None:
    """Writes the trajectory, also where mdtraj, which takes ASCII alone, cannot."""
    with failing_to_write("mdtraj", RuntimeError, TypeError), TemporaryDirectory() as folder:
        plain = str(path).isascii()
        where = path if plain else Path(folder) / f"trajectory{path.suffix}"
        trajectory.save(str(where))
        if not plain:
            shutil.copyfile(where, path)


def write_topology(
    path: str | Path,
    system: "System",
    positions: Float[Tensor, "frames atoms dims"],
) -> Path:
    """Returns `path` after writing the topology and the first structure as a PDB file."""
    path = Path(path)
    with atomic_path(path) as temporary:
        _trajectory(positions[:1], system).save_pdb(str(temporary))
    return path


def to_nanometres(
    positions: Float[Tensor, "frames atoms dims"], nm_per_length: float
) -> Float[np.ndarray, "frames atoms 3"]:
    """Returns the positions in nm, in three dimensions, as float32."""
    check_dimensions(positions.shape[2])
    scaled = nm_per_length * positions.detach().cpu().double()
    padded = torch.nn.functional.pad(scaled, (0, 3 - positions.shape[2]))
    return padded.float().numpy()


def check_dimensions(n_dims: int) -> None:
    """Raises ValueError where trajectories and topologies cannot hold as many dimensions."""
    if n_dims > 3:
        raise ValueError(
            f"trajectories hold at most 3 dimensions, the positions have {n_dims}: write .npz"
        )


def _trajectory(positions: Tensor, system: "System") -> "mdtraj.Trajectory":
    import mdtraj

    return mdtraj.Trajectory(to_nanometres(positions, system.nm_per_length), system.topology())
