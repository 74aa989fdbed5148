"""A plain perceptron velocity field for low-dimensional targets without symmetry."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from boltztilt.geometry import remove_mean
from boltztilt.networks.time_features import TimeFeatures
from boltztilt.sampling.divergence import brute_force_divergence
from boltztilt.sampling.flow import resting_rate


class Perceptron(nn.Module):
    """v(t, x) = skip(t) x + MLP(x, features of t), for toy densities in a few dimensions.

    A fresh network is the exact field at a = 0: the last layer starts at zero. Where the density
    lives on the subspace of zero mean (`centered`), so does the field.
    """

    divergence_by_products = True
    """The divergence takes Jacobian-vector products, which cannot be compiled."""

    def __init__(
        self,
        n_atoms: int,
        n_dims: int,
        n_hidden: int = 64,
        n_layers: int = 3,
        centered: bool = False,
    ) -> None:
        super().__init__()
        self.centered = centered
        n_inputs = n_atoms * n_dims
        self.time_features = TimeFeatures(n_hidden)
        sizes = [n_inputs + n_hidden] + [n_hidden] * n_layers
        layers = [
            layer
            for n_in, n_out in pairwise(sizes)
            for layer in (nn.Linear(n_in, n_out), nn.SiLU())
        ]
        last = nn.Linear(n_hidden, n_inputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(
        self, times: Float[Tensor, "batch"], positions: Float[Tensor, "batch atoms dims"]
    ) -> Float[Tensor, "batch atoms dims"]:
        """The velocity of each configuration at its time."""
        positions = remove_mean(positions) if self.centered else positions
        inputs = torch.cat([positions.flatten(1), self.time_features(times)], dim=-1)
        learned = self.layers(inputs).view_as(positions)
        skip = resting_rate(times)[:, None, None]
        return skip * positions + (remove_mean(learned) if self.centered else learned)

    def velocity_and_divergence(
        self, times: Float[Tensor, "batch"], positions: Float[Tensor, "batch atoms dims"]
    ) -> tuple[Float[Tensor, "batch atoms dims"], Float[Tensor, "batch"]]:
        """The velocity and its exact divergence."""
        return brute_force_divergence(self, times, positions)
