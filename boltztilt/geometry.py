"""Rigid motions and permutations of point clouds of shape `(batch, atoms, dims)`."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def remove_mean(positions: Float[Tensor, "batch atoms dims"]) -> Float[Tensor, "batch atoms dims"]:
    """The positions with their unweighted centre moved to the origin."""
    return positions - positions.mean(dim=-2, keepdim=True)


def centring_matrix(
    positions: Float[Tensor, "batch atoms dims"],
) -> Float[Tensor, "coordinates coordinates"]:
    """The matrix that moves the centre of positions to the origin, for all coordinates in a row."""
    n_atoms, n_dims = positions.shape[1:]
    axes = torch.eye(n_dims, dtype=positions.dtype, device=positions.device)
    atoms = torch.eye(n_atoms, dtype=positions.dtype, device=positions.device) - 1 / n_atoms
    return torch.kron(atoms, axes)


def pair_indices(n_atoms: int, device: torch.device | None = None) -> Int[Tensor, "2 pairs"]:
    """Indices (i, j) of the n(n-1)/2 unordered pairs, i < j."""
    return torch.triu_indices(n_atoms, n_atoms, offset=1, device=device)


def optimal_rotation(
    mobile: Float[Tensor, "batch atoms dims"],
    target: Float[Tensor, "batch atoms dims"],
    allow_reflection: bool,
) -> Float[Tensor, "batch dims dims"]:
    """Orthogonal matrices Q that minimise |mobile Q - target|^2 for centred clouds.

    Without reflections the determinant is forced to +1, so chirality is kept.

    Reference: W. Kabsch, Acta Cryst. A 32, 922 (1976).
    """
    left, _, right = torch.linalg.svd(mobile.transpose(-1, -2) @ target)
    if allow_reflection:
        return left @ right
    sign = torch.ones(left.shape[:-1], dtype=left.dtype, device=left.device)
    sign[..., -1] = torch.sign(torch.linalg.det(left @ right))
    return (left * sign.unsqueeze(-2)) @ right


def random_rotation(
    n_dims: int, generator: torch.Generator, reflect: bool = False
) -> Float[Tensor, "dims dims"]:
    """Returns a random orthogonal matrix (float64) of determinant 1, or -1 with `reflect`."""
    noise = torch.randn(n_dims, n_dims, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(noise).Q
    if (torch.linalg.det(rotation) < 0) != reflect:
        rotation[:, 0] = -rotation[:, 0]
    return rotation


def optimal_permutation(
    mobile: Float[Tensor, "batch atoms dims"],
    target: Float[Tensor, "batch atoms dims"],
    species: Int[Tensor, "atoms"],
) -> Int[Tensor, "batch atoms"]:
    """Orders of the mobile atoms, within each species, that minimise |mobile[order] - target|^2.

    Reference: H. W. Kuhn, Naval Res. Logist. 2, 83 (1955), as implemented in SciPy.
    """
    cost = -(target @ mobile.transpose(-1, -2))
    different = species[:, None] != species[None, :]
    matrices = cost.masked_fill(different, math.inf).cpu().numpy()
    orders = [linear_sum_assignment(matrix)[1] for matrix in matrices]
    return torch.as_tensor(np.stack(orders), device=mobile.device)


def permute(
    positions: Float[Tensor, "batch atoms dims"], order: Int[Tensor, "batch atoms"]
) -> Float[Tensor, "batch atoms dims"]:
    """The positions with atoms taken in the given order, one order per configuration."""
    return torch.gather(positions, 1, order.unsqueeze(-1).expand_as(positions))


def align(
    mobile: Float[Tensor, "batch atoms dims"],
    target: Float[Tensor, "batch atoms dims"],
    species: Int[Tensor, "atoms"],
    allow_reflection: bool = True,
    n_rounds: int = 2,
) -> Float[Tensor, "batch atoms dims"]:
    """The mobile clouds rotated and permuted onto the targets by alternating the two optima.

    A local optimum of the joint problem; each round cannot increase the distance. Both clouds are
    taken to be centred already.
    """
    for _ in range(n_rounds):
        mobile = permute(mobile, optimal_permutation(mobile, target, species))
        mobile = mobile @ optimal_rotation(mobile, target, allow_reflection)
    return mobile
