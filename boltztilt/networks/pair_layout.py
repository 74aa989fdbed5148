"""Moving values between atoms, pairs of atoms i < j, and the edges that every atom sees.

An edge is a pair seen from one of its ends, the centre. `AllPairs` moves values between all pairs
of a small cluster by products with matrices, `NeighbourPairs` by gathers between those within a
cutoff, or all pairs of a large cluster; both offer the same moves.
"""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from boltztilt.geometry import pair_indices

MOST_ATOMS_FOR_MATRICES = 80
"""Up to here products with matrices, n³ work, took less CPU time than gathers, n² work."""


class AllPairs(NamedTuple):
    """Incidence matrices of the complete graph: `first[p, i] = 1` where i is the first end of p.

    Sums over a few dozen atoms are products with small constant matrices: on a CPU they are
    faster than gathers, whose gradients scatter. `pair` is the pair of every edge.
    """

    first: Float[Tensor, "pairs atoms"]
    second: Float[Tensor, "pairs atoms"]
    pair: Int[Tensor, "all_edges"]

    @classmethod
    def of(cls, positions: Float[Tensor, "batch atoms dims"]) -> AllPairs:
        """The layout for this number of atoms, in the dtype and on the device of the positions."""
        n_atoms = positions.shape[-2]
        ends = pair_indices(n_atoms, positions.device)
        identity = torch.eye(n_atoms, dtype=positions.dtype, device=positions.device)
        pair = pair_numbers(n_atoms, positions.device).flatten()
        return cls(identity[ends[0]], identity[ends[1]], pair)

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return self.first.shape[1]

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

    def copies(
        self, values: Float[Tensor, "batch pairs features"]
    ) -> Float[Tensor, "batch atoms atoms features"]:
        """Values at (centre, other), anything on the diagonal."""
        return values.index_select(1, self.pair).unflatten(1, (self.n_atoms, self.n_atoms))

    def edges(
        self, values: Float[Tensor, "batch pairs features"], odd: bool = False
    ) -> Float[Tensor, "batch atoms atoms features"]:
        """Values at (centre, other), zero on the diagonal; `odd` ones change sign below it."""
        off_diagonal = 1 - torch.eye(self.n_atoms, dtype=values.dtype, device=values.device)
        sign = off_diagonal.triu() - off_diagonal.tril() if odd else off_diagonal
        return self.copies(values) * sign.unsqueeze(-1)

    def reverse(self, values: Float[Tensor, "batch atoms atoms features"]) -> Tensor:
        """Values of every edge taken from its other end."""
        return values.transpose(1, 2)


class NeighbourPairs(NamedTuple):
    """Pairs closer than a cutoff, padded to the largest number in the batch, or all pairs.

    Attributes:
        first, second: the atoms of every pair; padding has twice the atom 0.
        pair: the pair of every edge, 0 for padding.
        sign: 1 where the centre is the first end, -1 where it is the second, 0 for padding.
        far: where the edge of the other end stands among all edges of a structure.
        real: False for pairs that are padding.
    """

    first: Int[Tensor, "batch pairs"]
    second: Int[Tensor, "batch pairs"]
    pair: Int[Tensor, "batch atoms neighbours"]
    sign: Float[Tensor, "batch atoms neighbours"]
    far: Int[Tensor, "batch atoms neighbours"]
    real: Bool[Tensor, "batch pairs"]

    @classmethod
    def of(cls, positions: Float[Tensor, "batch atoms dims"], cutoff: float) -> NeighbourPairs:
        """The layout of these positions, found anew for every structure.

        With torch-cluster the search makes no table of all pairs.
        """
        n_batch, n_atoms, _ = positions.shape
        structure, first, second = close_pairs(positions.detach(), cutoff)
        rank = _rank(structure, n_batch)
        n_pairs = int(rank.max()) + 1 if len(rank) else 0
        table = torch.zeros(3, n_batch, n_pairs, dtype=torch.long, device=positions.device)
        table[:, structure, rank] = torch.stack([first, second, torch.ones_like(first)])

        centres = torch.cat([first, second]) + n_atoms * structure.repeat(2)
        order = torch.argsort(centres, stable=True)
        slot = torch.empty_like(order)
        slot[order] = _rank(centres[order], n_batch * n_atoms)
        n_edges = int(slot.max()) + 1 if len(slot) else 0
        place = centres % n_atoms * n_edges + slot
        ends = torch.stack([place[: len(first)], place[len(first) :]])
        edges = torch.zeros(3, n_batch, n_atoms * n_edges, dtype=torch.long, device=first.device)
        one = torch.ones_like(first)
        edges[:, structure, ends[0]] = torch.stack([rank, one, ends[1]])
        edges[:, structure, ends[1]] = torch.stack([rank, -one, ends[0]])
        pair, sign, far = edges.unflatten(2, (n_atoms, n_edges))
        return cls(table[0], table[1], pair, sign.to(positions.dtype), far, table[2].bool())

    @classmethod
    def every(cls, positions: Float[Tensor, "batch atoms dims"]) -> NeighbourPairs:
        """All pairs, whatever their distances; on the diagonal of the edges is padding."""
        n_batch, n_atoms, _ = positions.shape
        first, second = pair_indices(n_atoms, positions.device).expand(n_batch, 2, -1).unbind(1)
        pair = pair_numbers(n_atoms, positions.device).expand(n_batch, -1, -1)
        above = positions.new_ones(n_atoms, n_atoms).triu(1)
        sign = (above - above.T).expand(n_batch, -1, -1)
        far = torch.arange(n_atoms**2, device=positions.device).view(n_atoms, n_atoms).T
        real = torch.ones_like(first, dtype=torch.bool)
        return cls(first, second, pair, sign, far.expand(n_batch, -1, -1), real)

    def difference(self, values: Float[Tensor, "batch atoms features"]) -> Tensor:
        """Value of the first end minus that of the second, `(batch, pairs, features)`."""
        return self.sum_ends(values, odd=True)

    def sum_ends(self, values: Float[Tensor, "batch atoms features"], odd: bool = False) -> Tensor:
        """Sum of both ends; `odd` values change sign with the direction of the edge."""
        first, second = self.ends(values)
        return first - second if odd else first + second

    def ends(self, values: Float[Tensor, "batch atoms features"]) -> tuple[Tensor, Tensor]:
        """Values of the first and of the second end, each `(batch, pairs, features)`."""
        return _rows(values, self.first), _rows(values, self.second)

    def gather_to_atoms(
        self, values: Float[Tensor, "batch pairs features"], odd: bool = False
    ) -> Tensor:
        """Sum over the pairs of every atom; `odd` values change sign at the second end."""
        return self.edges(values, odd).sum(2)

    def spread(
        self, factors: tuple[Tensor, Tensor], vectors: Float[Tensor, "batch pairs 3"]
    ) -> Float[Tensor, "batch atoms 3"]:
        """sum_j factor_ij (x_i - x_j) at every atom, one factor for either end of a pair."""
        pulls = [self.edges(factor.unsqueeze(-1) * vectors, odd=True) for factor in factors]
        return torch.where(self.sign.unsqueeze(-1) > 0, pulls[0], pulls[1]).sum(2)

    def copies(
        self, values: Float[Tensor, "batch pairs features"]
    ) -> Float[Tensor, "batch atoms neighbours features"]:
        """Values on every edge, anything for padding."""
        return _rows(values, self.pair.flatten(1)).unflatten(1, self.pair.shape[1:])

    def edges(
        self, values: Float[Tensor, "batch pairs features"], odd: bool = False
    ) -> Float[Tensor, "batch atoms neighbours features"]:
        """Values on every edge, zero for padding; `odd` ones change sign at the second end."""
        return self.copies(values) * (self.sign if odd else self.sign.abs()).unsqueeze(-1)

    def reverse(self, values: Float[Tensor, "batch atoms neighbours features"]) -> Tensor:
        """Values of every edge taken from its other end."""
        return _rows(values.flatten(1, 2), self.far.flatten(1)).unflatten(1, self.far.shape[1:])


PairLayout = AllPairs | NeighbourPairs


def pair_layout(
    positions: Float[Tensor, "batch atoms dims"], cutoff: float | None = None
) -> PairLayout:
    """The layout of all pairs, or of those closer than the cutoff."""
    if cutoff is not None:
        return NeighbourPairs.of(positions, cutoff)
    few = positions.shape[-2] <= MOST_ATOMS_FOR_MATRICES
    return AllPairs.of(positions) if few else NeighbourPairs.every(positions)


def pair_numbers(n_atoms: int, device: torch.device) -> Int[Tensor, "atoms atoms"]:
    """The number of every pair in the order of `pair_indices`, at (i, j) and (j, i)."""
    first, second = pair_indices(n_atoms, device)
    numbers = torch.zeros(n_atoms, n_atoms, dtype=torch.long, device=device)
    numbers[first, second] = torch.arange(len(first), device=device)
    return numbers + numbers.T


def close_pairs(
    positions: Float[Tensor, "batch atoms dims"], cutoff: float
) -> tuple[Int[Tensor, "pairs"], Int[Tensor, "pairs"], Int[Tensor, "pairs"]]:
    """Structure, first and second atom of all pairs i < j within the cutoff, in this order."""
    n_batch, n_atoms, n_dims = positions.shape
    if importlib.util.find_spec("torch_cluster") is None:
        near = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist")
        structure, first, second = (near < cutoff).triu(1).nonzero(as_tuple=True)
        return structure, first, second
    from torch_cluster import radius_graph

    structures = torch.arange(n_batch, device=positions.device).repeat_interleave(n_atoms)
    flat = positions.reshape(-1, n_dims)
    ends = radius_graph(flat, cutoff, structures, max_num_neighbors=n_atoms)
    ends = ends[:, ends[0] < ends[1]]
    ends = ends[:, torch.argsort(ends[0] * len(flat) + ends[1])]
    return ends[0] // n_atoms, ends[0] % n_atoms, ends[1] % n_atoms


def _rank(groups: Int[Tensor, "members"], n_groups: int) -> Int[Tensor, "members"]:
    """The number of every member within its group, for sorted groups."""
    sizes = torch.bincount(groups, minlength=n_groups)
    starts = sizes.cumsum(0) - sizes
    return torch.arange(len(groups), device=groups.device) - starts[groups]


def _rows(values: Tensor, index: Int[Tensor, "batch rows"]) -> Tensor:
    """The rows of every structure that its own list names."""
    n_batch, n_rows, n_features = values.shape
    offsets = n_rows * torch.arange(n_batch, device=index.device).unsqueeze(1)
    rows = values.reshape(-1, n_features).index_select(0, (index + offsets).flatten())
    return rows.view(*index.shape, n_features)
