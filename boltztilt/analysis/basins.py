"""Basins of a peptide's backbone: which structures have phi > 0 or are helical."""

from __future__ import annotations

import math

import mdtraj
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from boltztilt.systems.system import System

HELIX = (math.radians(-120.0), math.radians(60.0))
"""Range of psi that counts as helical where phi < 0."""


def backbone_basins(
    system: System, positions: Float[Tensor, "batch atoms 3"]
) -> dict[str, Bool[Tensor, "batch"]]:
    """Whether each structure is in each basin, for every residue with both phi and psi.

    `phi_positive` is phi > 0 and `helix` phi < 0 with psi in HELIX. Residues are numbered where
    there are several. Empty for what is not a peptide. Structures are reflected to the handedness
    of the molecule first.
    """
    if system.molecule is None:
        return {}
    own = system.molecule.unmirrored(positions)[0]
    trajectory = mdtraj.Trajectory(own.numpy(), system.topology())
    phi, psi = (
        torch.from_numpy(compute(trajectory)[1].astype(np.float64))
        for compute in (mdtraj.compute_phi, mdtraj.compute_psi)
    )
    n_residues = min(phi.shape[1], psi.shape[1])
    basins = {}
    for residue in range(n_residues):
        number = f"_{residue + 1}" if n_residues > 1 else ""
        left = phi[:, residue] < 0
        within = (psi[:, residue] > HELIX[0]) & (psi[:, residue] < HELIX[1])
        basins[f"phi_positive{number}"] = ~left
        basins[f"helix{number}"] = left & within
    return basins
