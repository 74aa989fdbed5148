"""Pairs of atoms, laid out for fast sums over pairs."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


class AtomPairs:
    """Given pairs of atoms, or all i < j; tensors over pairs keep the batch last, the fastest."""

    def __init__(self, n_atoms: int, pairs: Int[Tensor, "2 pairs"] | None = None):
        if n_atoms < 2:
            raise ValueError(f"a pair potential needs at least 2 atoms, got {n_atoms}")
        if pairs is None:
            pairs = torch.triu_indices(n_atoms, n_atoms, offset=1)
        self.first, self.second = pairs
        pair = torch.arange(len(self.first))
        self.incidence = torch.zeros(n_atoms, len(pair))
        self.incidence[self.first, pair] = 1.0
        self.incidence[self.second, pair] = -1.0

    def separations(
        self, positions: Float[Tensor, "batch atoms dims"]
    ) -> Float[Tensor, "pairs dims batch"]:
        """Returns x_i - x_j of every pair."""
        by_atom = positions.permute(1, 2, 0).contiguous()
        first, second = self.first.to(positions.device), self.second.to(positions.device)
        return by_atom[first] - by_atom[second]

    def sum_on_atoms(
        self, pair_forces: Float[Tensor, "pairs dims batch"]
    ) -> Float[Tensor, "batch atoms dims"]:
        """Returns the force on every atom: each pair's on its first, the opposite on its second."""
        total = self.incidence.to(pair_forces) @ pair_forces.flatten(1)
        return total.unflatten(1, pair_forces.shape[1:]).permute(2, 0, 1)
