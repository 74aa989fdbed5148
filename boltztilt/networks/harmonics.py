"""Spherical harmonics that stay smooth at the origin, with the derivatives a divergence needs."""

from __future__ import annotations

import torch
from e3nn import o3
from jaxtyping import Float
from torch import Tensor

Vectors = Float[Tensor, "*shape 3"]


def softened_length(
    distances: Float[Tensor, "*shape"], softening: float
) -> Float[Tensor, "*shape"]:
    """sqrt(d² + s²): a length that does not vanish when two atoms meet."""
    return torch.sqrt(distances.square() + softening**2)


def harmonics(vectors: Vectors, degree: int) -> Float[Tensor, "*shape orders"]:
    """Solid harmonics S_lm(v) of one degree, 2l+1 orders, |S_l(v)|² = (2l+1) |v|^(2l).

    Homogeneous polynomials of e3nn in its 'component' normalisation; for v = r / sqrt(d² + s²)
    they equal Y_lm(r/d) beyond the softening and vanish smoothly at the origin.
    """
    return o3.spherical_harmonics(degree, vectors, normalize=False, normalization="component")


def gradient_tensor(degree: int) -> Float[Tensor, "lower 3 orders"]:
    """Constants G with ∂S_lm(v)/∂v_a = sum_m' S_{l-1,m'}(v) G[m', a, m], in float64.

    By the Wigner-Eckart theorem G is a multiple of the 3j symbols (l-1, 1, l); the multiple
    follows from Euler's identity v·∇S_l = l S_l at one point.
    """
    if degree < 1:
        raise ValueError(f"degree is {degree}; a constant harmonic has no gradient tensor")
    symbols = o3.wigner_3j(degree - 1, 1, degree, dtype=torch.float64)
    point = torch.tensor([0.36, 0.48, 0.8], dtype=torch.float64)
    product = torch.einsum("p,a,pam->m", harmonics(point, degree - 1), point, symbols)
    target = harmonics(point, degree)
    return symbols * degree * (target @ product) / (product @ product)
