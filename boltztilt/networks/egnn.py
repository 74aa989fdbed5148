"""The equivariant graph network of the literature, a baseline whose divergence is expensive."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from boltztilt.sampling.divergence import brute_force_divergence


class EGNN(nn.Module):
    """A velocity field that turns, reflects, shifts and permutes with the atoms.

    Every layer sends messages m_ij = phi_e(h_i, h_j, d_ij^2) between all pairs, moves the atoms by
    sum_j (x_i - x_j) phi_x(m_ij) / (d_ij + 1) and updates h_i += phi_h(h_i, sum_j m_ij); the first
    h_i embeds the species and the time. The velocity is the total displacement, without its mean,
    plus the exact field between two equal Gaussians, x (2t - 1) / ((1 - t)^2 + t^2).

    Its exact divergence takes atoms * dims Jacobian-vector products.

    Args:
        species: one integer per atom; atoms of equal species are treated alike.
        n_hidden: width of all features.
        n_layers: number of message passing layers.

    Reference:
        Satorras, Hoogeboom, Welling (2021), E(n) equivariant graph neural networks, eqs. 3-6,
        https://arxiv.org/abs/2102.09844
    """

    divergence_by_products = True
    """The divergence takes Jacobian-vector products, which cannot be compiled."""

    def __init__(self, species: Sequence[int], n_hidden: int = 128, n_layers: int = 5):
        super().__init__()
        self.n_layers = n_layers
        self.register_buffer("species", torch.as_tensor(species), persistent=False)
        self.embed_species = nn.Embedding(max(species) + 1, n_hidden)
        self.embed_time = nn.Linear(1, n_hidden)
        self.layers = nn.ModuleList(MessageLayer(n_hidden) for _ in range(n_layers))

    def forward(
        self, times: Float[Tensor, "batch"], positions: Float[Tensor, "batch atoms dims"]
    ) -> Float[Tensor, "batch atoms dims"]:
        """Returns the velocity at each configuration's time."""
        features = self.embed_species(self.species) + self.embed_time(times[:, None])[:, None]
        moved = positions
        for layer in self.layers:
            features, moved = layer(features, moved)
        displacement = moved - positions
        displacement = displacement - displacement.mean(1, keepdim=True)
        rate = (2.0 * times - 1.0) / ((1.0 - times).square() + times.square())
        return displacement + rate[:, None, None] * (positions - positions.mean(1, keepdim=True))

    def velocity_and_divergence(
        self, times: Float[Tensor, "batch"], positions: Float[Tensor, "batch atoms dims"]
    ) -> tuple[Float[Tensor, "batch atoms dims"], Float[Tensor, "batch"]]:
        """Returns the velocity and its exact divergence."""
        return brute_force_divergence(self, times, positions)


class MessageLayer(nn.Module):
    """One round of messages between all pairs of atoms."""

    def __init__(self, n_hidden: int):
        super().__init__()
        # the first linear map of the message, applied to its three inputs before they meet
        self.from_own = nn.Linear(n_hidden, n_hidden)
        self.from_other = nn.Linear(n_hidden, n_hidden, bias=False)
        self.from_square = nn.Linear(1, n_hidden, bias=False)
        self.message = nn.Sequential(nn.SiLU(), nn.Linear(n_hidden, n_hidden), nn.SiLU())
        last = nn.Linear(n_hidden, 1, bias=False)
        nn.init.xavier_uniform_(last.weight, gain=0.001)
        self.stretch = nn.Sequential(nn.Linear(n_hidden, n_hidden), nn.SiLU(), last)
        self.update = nn.Sequential(
            nn.Linear(2 * n_hidden, n_hidden), nn.SiLU(), nn.Linear(n_hidden, n_hidden)
        )

    def forward(
        self,
        features: Float[Tensor, "batch atoms hidden"],
        positions: Float[Tensor, "batch atoms dims"],
    ) -> tuple[Float[Tensor, "batch atoms hidden"], Float[Tensor, "batch atoms dims"]]:
        """Returns the updated features and the moved positions."""
        n_atoms = positions.shape[1]
        separations = positions[:, :, None] - positions[:, None]
        squares = separations.square().sum(-1, keepdim=True)
        meeting = self.from_own(features)[:, :, None] + self.from_other(features)[:, None]
        others = 1.0 - torch.eye(n_atoms, dtype=positions.dtype, device=positions.device)
        messages = self.message(meeting + self.from_square(squares)) * others[..., None]
        # the tiny offset keeps the derivative finite on the diagonal, where nothing moves
        strengths = self.stretch(messages) / ((squares + 1e-12).sqrt() + 1.0)
        moved = positions + (strengths * separations).sum(2)
        update = self.update(torch.cat([features, messages.sum(2)], dim=-1))
        return features + update, moved
