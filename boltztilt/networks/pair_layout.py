"""Moving values between atoms, pairs of atoms i < j, and the edges that every atom sees.

An edge is a pair seen from one of its ends, the centre. `AllPairs` serves small clusters,
`NeighbourPairs` pairs within a cutoff, or all pairs of a large cluster; both offer the same moves.
"""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from boltztilt.geometry import pair_indices

MOST_ATOMS_FOR_MATRICES = 80
"""Up to here gradients by products with matrices, n³ work, took less CPU time than scattering."""


class AllPairs(NamedTuple):
    """The complete graph of a few dozen atoms.

    Gathers go back by products with small constant matrices, which are faster on a CPU than
    scattering.

    Attributes:
        first, second: the atoms of every pair.
        pair: the pair of every edge.
        at_first, at_second: 1 where an atom is that end of a pair.
    """

    first: Int[Tensor, "pairs"]
    second: Int[Tensor, "pairs"]
    pair: Int[Tensor, "all_edges"]
    at_first: Float[Tensor, "atoms pairs"]
    at_second: Float[Tensor, "atoms pairs"]

    @classmethod
    def of(cls, positions: Float[Tensor, "batch atoms dims"]) -> AllPairs:
        """The layout for this number of atoms, in the dtype and on the device of the positions."""
        n_atoms = positions.shape[-2]
        first, second = pair_indices(n_atoms, positions.device)
        identity = torch.eye(n_atoms, dtype=positions.dtype, device=positions.device)
        pair = pair_numbers(n_atoms, positions.device).flatten()
        return cls(first, second, pair, identity[first].T, identity[second].T)

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.at_first)

    def difference(self, values: Float[Tensor, "batch atoms features"]) -> Tensor:
        """Value of the first end minus that of the second, `(batch, pairs, features)`."""
        return self.sum_ends(values, odd=True)

    def sum_ends(self, values: Float[Tensor, "batch atoms features"], odd: bool = False) -> Tensor:
        """Sum of both ends; `odd` values change sign with the direction of the edge."""
        sign = -1.0 if odd else 1.0
        if not values.requires_grad:
            return _sum_of_ends(values, self.first, self.second, sign)
        transpose = self.at_first + sign * self.at_second
        function = _SumOfEnds if torch.compiler.is_compiling() else _SumOfEndsWithRate
        return function.apply(values, self.first, self.second, sign, transpose)

    def copies(
        self, values: Float[Tensor, "batch pairs features"]
    ) -> Float[Tensor, "batch atoms atoms features"]:
        """Values at (centre, other), anything on the diagonal, which must not be used."""
        square = (self.n_atoms, self.n_atoms)
        if not values.requires_grad:
            return values.index_select(1, self.pair).unflatten(1, square)
        edge = self.first * self.n_atoms + self.second
        reverse = self.second * self.n_atoms + self.first
        function = _Copies if torch.compiler.is_compiling() else _CopiesWithRate
        return function.apply(values, self.pair, edge, reverse).unflatten(1, square)

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


def _sum_of_ends(values: Tensor, first: Tensor, second: Tensor, sign: float) -> Tensor:
    """Values of the first ends plus `sign` times those of the second."""
    return values.index_select(1, first) + sign * values.index_select(1, second)


class _SumOfEnds(torch.autograd.Function):
    """`_sum_of_ends`, back by a product with `transpose`.

    This function and `_Copies` have no forward-mode derivative, because torch.compile refuses
    functions that have; their subclasses are for all other uses.
    """

    @staticmethod
    def forward(
        values: Tensor, first: Tensor, second: Tensor, sign: float, transpose: Tensor
    ) -> Tensor:
        return _sum_of_ends(values, first, second, sign)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, first, second, ctx.sign, transpose = inputs
        ctx.save_for_backward(transpose)
        ctx.save_for_forward(first, second)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (transpose,) = ctx.saved_tensors
        return transpose.to(gradient.dtype) @ gradient, None, None, None, None


class _SumOfEndsWithRate(_SumOfEnds):
    @staticmethod
    def jvp(ctx: Any, change: Tensor, *_: Any) -> Tensor:
        first, second = ctx.saved_tensors
        return _sum_of_ends(change, first, second, ctx.sign)


class _Copies(torch.autograd.Function):
    """Values of pairs on all edges; back go those of both edges of a pair, off the diagonal."""

    @staticmethod
    def forward(values: Tensor, pair: Tensor, edge: Tensor, reverse: Tensor) -> Tensor:
        return values.index_select(1, pair)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, pair, edge, reverse = inputs
        ctx.save_for_backward(edge, reverse)
        ctx.save_for_forward(pair)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        edge, reverse = ctx.saved_tensors
        both = gradient.index_select(1, edge) + gradient.index_select(1, reverse)
        return both, None, None, None


class _CopiesWithRate(_Copies):
    @staticmethod
    def jvp(ctx: Any, change: Tensor, *_: Any) -> Tensor:
        (pair,) = ctx.saved_tensors
        return change.index_select(1, pair)


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
        first, second = _rows(values, self.first), _rows(values, self.second)
        return first - second if odd else first + second

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
