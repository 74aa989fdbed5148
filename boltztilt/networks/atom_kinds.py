"""What tells atoms apart in a velocity field: tables by role and by kind of pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from boltztilt.networks.pair_layout import AllPairs, PairLayout

N_ZOOMED = 4
"""Radial functions that follow the noise: two steps and two bumps, narrow and wide."""

WIDE = 4.0
"""Width of the wide ones over that of the narrow ones."""

RESTING_WIDTHS = (0.03, 0.03, 0.2, 1.0)
"""Widths without noise of pairs 1, 2, 3 and more bonds apart, in units of their noise at t = 0."""


class Pairing(NamedTuple):
    """What is known of all pairs of a molecule before anything is learned.

    Attributes:
        species: one integer per atom; atoms of one species are interchangeable.
        distances: `(atoms, atoms)` in one structure, where the learning of rest lengths starts.
        bonds: `(atoms, atoms)`, number of bonds between two atoms.
        spreads: `(atoms, atoms)`, standard deviation of x_i - x_j under the base, on each axis.
    """

    species: Sequence[int]
    distances: Float[Tensor, "atoms atoms"]
    bonds: Int[Tensor, "atoms atoms"]
    spreads: Float[Tensor, "atoms atoms"]

    def roles(self) -> Int[Tensor, "atoms"]:
        """The species of the atoms, numbered from 0 in ascending order."""
        return torch.tensor(self.species).unique(return_inverse=True)[1]


class AtomKinds(nn.Module):
    """Tables of a field for distinguishable atoms; pairs of the same two species share a row.

    Distances of bonded atoms are known the better the less noise is left: radial functions of
    u = (d - d_0) / sqrt(((1 - t) s)² + w²) with learned d_0 and w, one per kind of pair, resolve
    them at all times. Here s is the spread of the pair under the base.
    """

    of_atom: Tensor
    of_pair: Tensor
    table: Tensor
    spread: Tensor

    def __init__(self, pairing: Pairing, n_hidden: int, n_densities: int) -> None:
        super().__init__()
        of_atom = pairing.roles()
        n_roles = int(of_atom.max()) + 1
        low = torch.minimum(of_atom[:, None], of_atom)
        high = torch.maximum(of_atom[:, None], of_atom)
        first, second = torch.triu_indices(len(of_atom), len(of_atom), offset=1)
        names, of_pair = torch.unique((low * n_roles + high)[first, second], return_inverse=True)
        table = torch.zeros(len(of_atom), len(of_atom), dtype=torch.long)
        table[first, second] = table[second, first] = of_pair
        self.register_buffer("of_atom", of_atom, persistent=False)
        self.register_buffer("of_pair", of_pair, persistent=False)
        self.register_buffer("table", table, persistent=False)

        def mean(values: Tensor) -> Tensor:
            sums = torch.zeros(len(names)).index_add_(0, of_pair, values[first, second].float())
            return sums / torch.bincount(of_pair)

        spreads = mean(pairing.spreads)
        steps = mean(pairing.bonds).round().long().clamp(1, len(RESTING_WIDTHS)) - 1
        self.register_buffer("spread", spreads, persistent=False)
        self.rest_length = nn.Parameter(mean(pairing.distances))
        self.log_width = nn.Parameter(torch.log(torch.tensor(RESTING_WIDTHS)[steps] * spreads))
        self.density_scales = nn.Parameter(1 + 0.5 * torch.randn(len(names), n_densities))
        self.edge_shifts = nn.Parameter(0.3 * torch.randn(len(names), n_hidden))
        self.edge_gates = nn.Parameter(torch.zeros(len(names), n_hidden))
        self.node_shifts = nn.Parameter(0.3 * torch.randn(n_roles, n_hidden))

    def pairs(self, layout: PairLayout) -> Int[Tensor, "*batch pairs"]:
        """The kind of every pair of a layout."""
        if isinstance(layout, AllPairs):
            return self.of_pair
        return self.table[layout.first, layout.second]

    def zoomed(
        self,
        times: Float[Tensor, "batch"],
        distances: Float[Tensor, "batch pairs"],
        layout: PairLayout,
    ) -> tuple[Float[Tensor, "batch pairs zoomed"], Float[Tensor, "batch pairs zoomed"]]:
        """Values and derivatives of the radial functions that follow the noise."""
        kinds = self.pairs(layout)
        noise = (1 - times)[:, None] * self.spread[kinds]
        width = torch.sqrt(noise.square() + torch.exp(2 * self.log_width[kinds]))
        values, slopes = [], []
        for scale in (1.0, WIDE):
            u = (distances - self.rest_length[kinds]) / (scale * width)
            step, bump = torch.tanh(u), torch.exp(-u.square() / 2)
            values += [step, bump]
            slopes += [(1 - step.square()) / (scale * width), -u * bump / (scale * width)]
        return torch.stack(values, -1), torch.stack(slopes, -1)
