"""Collective motions of a molecule: a velocity from all scalar products of a few vectors.

Long before bonds take shape, where an atom goes depends on how the whole molecule lies. Few
vectors tell that, and a perceptron of their scalar products, whose exact divergence is cheap.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import one_hot, silu

from boltztilt.networks.atom_kinds import Pairing
from boltztilt.networks.local_density_divergence import silu_slope
from boltztilt.networks.time_features import TimeFeatures

MOST_VECTORS = 24
"""Collective vectors of large molecules: those that spread most under the base."""

TIME_WIDTH = 64


class Activations(NamedTuple):
    """What the perceptron makes of the positions, kept for the divergence.

    `first` and `second` are the activations of its hidden layers before the nonlinearity, and
    `scales` the factors that the time gives them.
    """

    vectors: Float[Tensor, "batch vectors dims"]
    products: Float[Tensor, "batch vectors vectors"]
    first: Float[Tensor, "batch hidden"]
    second: Float[Tensor, "batch hidden"]
    scales: tuple[Float[Tensor, "batch hidden"], Float[Tensor, "batch hidden"]]
    factors: Float[Tensor, "batch roles vectors"]


class CollectiveField(nn.Module):
    """Velocity of the roles of a molecule along collective vectors.

    With y_r the mean position of the atoms of role r and learned weights w,

        V_c = sum_r w_rc y_r,   G = V V^T / dims,   v_i = sum_c phi_rc(G, t) V_c   for i of role r.

    All fields that turn and reflect with the y_r have this form where the V_c span them all. The
    weights start from the widest modes of the base, where the V_c are independent and of unit
    variance. The velocity is zero until something is learned.

    Args:
        pairing: roles of the atoms, and spreads of their distances under the base.
        width: of the two hidden layers of phi.

    Reference:
        S. Villar et al. (2021), Scalars are universal, https://arxiv.org/abs/2106.06610
    """

    members: Tensor
    of_atom: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, pairing: Pairing, width: int) -> None:
        super().__init__()
        of_atom = pairing.roles()
        members = one_hot(of_atom).double().T
        modes = widest_modes(pairing.spreads.double(), members)
        n_roles, n_vectors = modes.shape
        first, second = torch.triu_indices(n_vectors, n_vectors)
        self.register_buffer("of_atom", of_atom, persistent=False)
        self.register_buffer("members", members.float(), persistent=False)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)
        self.weights = nn.Parameter(modes.float())
        self.time_features = TimeFeatures(TIME_WIDTH)
        self.modulation = nn.Linear(TIME_WIDTH, 4 * width)
        self.input = nn.Linear(len(first), width)
        self.hidden = nn.Linear(width, width)
        self.output = nn.Linear(width, n_roles * n_vectors, bias=False)
        self.drift = nn.Linear(TIME_WIDTH, n_roles * n_vectors)
        self.silence()

    def silence(self) -> None:
        """Zeroes the last weights, and so the velocity."""
        for parameter in (self.output.weight, self.drift.weight, self.drift.bias):
            nn.init.zeros_(parameter)

    def forward(
        self, times: Float[Tensor, "batch"], positions: Float[Tensor, "batch atoms dims"]
    ) -> Float[Tensor, "batch atoms dims"]:
        """The velocities of all atoms, whose mean is not removed."""
        return self.velocity(self.activations(times, positions))

    def velocity(self, activations: Activations) -> Float[Tensor, "batch atoms dims"]:
        """The velocities of all atoms from what the perceptron made of their positions."""
        return (activations.factors @ activations.vectors)[:, self.of_atom]

    def activations(self, times: Tensor, positions: Tensor) -> Activations:
        """The vectors, their scalar products, and the factors that the perceptron gives them."""
        role_means = (self.members @ positions) / self.members.sum(dim=1, keepdim=True)
        vectors = self.invariant_weights().T @ role_means
        products = vectors @ vectors.transpose(1, 2) / positions.shape[-1]
        features = self.time_features(times)
        scale, shift, second_scale, second_shift = self.modulation(features).chunk(4, -1)
        scales = (1 + scale, 1 + second_scale)
        first = self.input(products[:, self.first, self.second]) * scales[0] + shift
        second = self.hidden(silu(first)) * scales[1] + second_shift
        factors = self.output(silu(second)) + self.drift(features)
        factors = factors.unflatten(-1, self.weights.shape)
        return Activations(vectors, products, first, second, scales, factors)

    def invariant_weights(self) -> Float[Tensor, "roles vectors"]:
        """Weights of the roles in each vector; their sum is zero, and shifts change nothing."""
        return self.weights - self.weights.mean(dim=0)

    def velocity_and_divergence(
        self, times: Float[Tensor, "batch"], positions: Float[Tensor, "batch atoms dims"]
    ) -> tuple[Float[Tensor, "batch atoms dims"], Float[Tensor, "batch"]]:
        """The velocities and the trace of their Jacobian.

        As y_r moves along V_c, G_ab changes by w_ra G_bc + w_rb G_ac. Summed over r and c, these
        rates couple every unit of the first hidden layer to every unit of the second.
        """
        activations = self.activations(times, positions)
        first_scale, second_scale = activations.scales
        weights, n_dims = self.invariant_weights(), positions.shape[-1]
        n_vectors = weights.shape[1]
        into = self.input.weight.new_zeros(len(self.input.weight), n_vectors, n_vectors)
        into[:, self.first, self.second] = self.input.weight
        into = into + into.transpose(1, 2)
        out = self.output.weight.unflatten(0, weights.shape)
        outwards = torch.einsum("rch,ra->hca", out, weights)
        inwards = torch.einsum("gab,nbc->ngca", into, activations.products)
        coupling = outwards.flatten(1) @ inwards.flatten(2).transpose(1, 2)
        first = silu_slope(activations.first) * first_scale
        second = silu_slope(activations.second) * second_scale
        coupling = coupling * self.hidden.weight
        responses = (second * (coupling @ first.unsqueeze(-1)).squeeze(-1)).sum(-1)
        divergence = n_dims * (activations.factors * weights).sum((-1, -2)) + responses
        return self.velocity(activations), divergence


def widest_modes(
    spreads: Float[Tensor, "atoms atoms"], members: Float[Tensor, "roles atoms"]
) -> Float[Tensor, "roles vectors"]:
    """Weights of the mean positions of roles in the widest modes of a Gaussian, of unit variance.

    Args:
        spreads: standard deviations of x_i - x_j on each axis.
        members: 1 where an atom has a role, 0 elsewhere.
    """
    n_atoms, n_roles = len(spreads), len(members)
    role_means = members / members.sum(dim=1, keepdim=True)
    centre = torch.eye(n_atoms, dtype=spreads.dtype) - 1 / n_atoms
    covariance = role_means @ (-0.5 * centre @ spreads.square() @ centre) @ role_means.T
    centre = torch.eye(n_roles, dtype=spreads.dtype) - 1 / n_roles
    variances, modes = torch.linalg.eigh(centre @ covariance @ centre)
    widest = slice(max(1, n_roles - MOST_VECTORS), None)
    return (modes[:, widest] / variances[widest].sqrt()).flip(1)
