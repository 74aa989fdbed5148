"""Couplings of base draws with samples of the tilted law.

Both leave x0 Gaussian and independent of every quantity that rotations, reflections and
permutations of x1 do not change; the reward is such a quantity, so tilting the pairs with
exp(h r(x1)) tilts the law of x1 and leaves that of x0 alone.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

from boltztilt.geometry import align


def independent_coupling(starts: Tensor, ends: Tensor, species: Tensor, mirror: bool) -> Tensor:
    """The end points as they are."""
    return ends


def aligned_coupling(
    starts: Float[Tensor, "batch atoms dims"],
    ends: Float[Tensor, "batch atoms dims"],
    species: Int[Tensor, "atoms"],
    mirror: bool,
) -> Float[Tensor, "batch atoms dims"]:
    """The end points turned and relabelled onto their starts: shorter, straighter paths.

    Reference: L. Klein, A. Krämer, F. Noé (2023), Equivariant flow matching, section 4,
    https://arxiv.org/abs/2306.15030
    """
    return align(ends, starts, species, allow_reflection=mirror)


COUPLINGS: dict[str, Callable[[Tensor, Tensor, Tensor, bool], Tensor]] = {
    "aligned": aligned_coupling,
    "independent": independent_coupling,
}
