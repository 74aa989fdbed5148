"""Moving values between atoms and the n(n-1)/2 pairs i < j.

Sums over a few dozen atoms are products with small constant matrices: on a CPU they are several
times faster than gathers, whose gradients scatter.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from boltztilt.geometry import pair_indices


class PairLayout(NamedTuple):
    """Incidence matrices of the complete graph: `first[p, i] = 1` where i is the first end of p."""

    first: Float[Tensor, "pairs atoms"]
    second: Float[Tensor, "pairs atoms"]

    @classmethod
    def of(cls, positions: Float[Tensor, "batch atoms dims"]) -> PairLayout:
        """The layout for this number of atoms, in the dtype and on the device of the positions."""
        n_atoms = positions.shape[-2]
        ends = pair_indices(n_atoms, positions.device)
        identity = torch.eye(n_atoms, dtype=positions.dtype, device=positions.device)
        return cls(identity[ends[0]], identity[ends[1]])

    def difference(self, values: Float[Tensor, "batch atoms features"]) -> Tensor:
        """Value of the first end minus that of the second, `(batch, pairs, features)`."""
        return (self.first - self.second) @ values

    def sum_ends(self, values: Float[Tensor, "batch atoms features"], odd: bool = False) -> Tensor:
        """Sum of both ends; `odd` values change sign with the direction of the edge."""
        return (self.first - self.second if odd else self.first + self.second) @ values

    def ends(self, values: Float[Tensor, "batch atoms features"]) -> tuple[Tensor, Tensor]:
        """Values of the first and of the second end, each `(batch, pairs, features)`."""
        return self.first @ values, self.second @ values

    def gather_to_atoms(
        self, values: Float[Tensor, "batch pairs features"], odd: bool = False
    ) -> Tensor:
        """Sum over the pairs of every atom; `odd` values change sign at the second end."""
        incidence = self.first - self.second if odd else self.first + self.second
        return incidence.T @ values

    def spread(
        self, factors: tuple[Tensor, Tensor], vectors: Float[Tensor, "batch pairs 3"]
    ) -> Float[Tensor, "batch atoms 3"]:
        """sum_j factor_ij (x_i - x_j) at every atom, one factor for either end of a pair."""
        at_first = self.first.T @ (factors[0].unsqueeze(-1) * vectors)
        return at_first - self.second.T @ (factors[1].unsqueeze(-1) * vectors)
