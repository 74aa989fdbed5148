"""Exact divergence of the local-density field from one directional derivative per edge.

Moving atom i along e_a changes its own density A_i through all its edges, and the density of any
other atom j through the edge (i, j) alone. For a term phi(x) (x_i - x_j) of the velocity of atom i

    tr d[phi r_ij]/dx_i = dims * phi + D phi,    D = derivative as x_i moves along r_ij:

the edge (i, j) then stretches at rate d_ij without turning, so that A_j changes along Y(u_ij) only.
All tensors here live on the dense layout `(batch, centre, other, ...)`: the centre is the atom that
moves, the other one the far end of its edge; diagonal entries are zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from boltztilt.geometry import pair_indices
from boltztilt.networks.harmonics import gradient_tensor
from boltztilt.networks.local_density_features import (
    DENSITY_SCALE,
    EdgeActivations,
    NodeFeatures,
    PairGeometry,
    TimeModulation,
)
from boltztilt.networks.pair_layout import PairLayout

if TYPE_CHECKING:
    from boltztilt.networks.local_density import LocalDensityField


class DegreeTangents(NamedTuple):
    """Derivatives of the densities of one degree.

    `own` is dA_centre/dx_a. `stretch` is the rate of the radial part when the edge stretches, per
    channel; `near` and `far` are the projections of the two ends' densities on the edge, seen from
    that end, and `near_rate`, `far_rate` their rates of change.
    """

    own: Float[Tensor, "batch atoms channels 3 orders"]
    stretch: Float[Tensor, "batch atoms atoms channels"]
    far: Float[Tensor, "batch atoms atoms channels"]
    near_rate: Float[Tensor, "batch atoms atoms channels"]
    far_rate: Float[Tensor, "batch atoms atoms channels"]


def velocity_and_divergence(
    field: LocalDensityField,
    times: Float[Tensor, "batch"],
    positions: Float[Tensor, "batch atoms dims"],
) -> tuple[Float[Tensor, "batch atoms dims"], Float[Tensor, "batch"]]:
    """The field's velocity, as `forward` gives it, and the trace of its Jacobian."""
    layout = PairLayout.of(positions)
    geometry = field.pair_geometry(positions, layout)
    basis, basis_slope = field.basis.with_derivative(geometry.distances)
    radial, radial_slope = field.radial(basis), field.radial(basis_slope)
    densities = field.densities(radial, geometry, layout)
    modulation = field.modulate(times)
    nodes = field.node_features(densities, modulation)
    projections = field.projections(densities, geometry, layout)
    edges = field.edge_activations(basis, projections, nodes, modulation, layout)
    factors = field.pair_factors(edges, nodes, modulation, layout)
    velocity = field.velocity(times, positions, factors, nodes, densities, geometry, layout)

    dense = DenseLayout(positions)
    tangents = density_tangents(field, radial, radial_slope, densities, geometry, dense)
    own_rate, far_rate = node_tangents(field, tangents, densities, nodes, modulation)
    stretched = basis_slope * geometry.distances.unsqueeze(-1)
    turning = edge_tangents(
        field, stretched, tangents, own_rate, far_rate, edges, nodes, modulation, geometry, dense
    )
    n_dims = positions.shape[-1]
    divergence = n_dims * (factors[0] + factors[1]).sum(-1) + turning.sum(dim=(-1, -2))
    divergence = divergence + vector_trace(field, tangents[1], own_rate, nodes, densities, n_dims)
    skip, scale = field.skip_and_scale(times)
    n_free = n_dims * (positions.shape[-2] - 1)
    return velocity, skip * n_free + scale * divergence


class DenseLayout:
    """Expands values of pairs i < j to all ordered (centre, other), zero on the diagonal."""

    def __init__(self, positions: Float[Tensor, "batch atoms dims"]) -> None:
        n_atoms, device = positions.shape[-2], positions.device
        self.n_atoms = n_atoms
        first, second = pair_indices(n_atoms, device)
        index = torch.zeros(n_atoms, n_atoms, dtype=torch.long, device=device)
        index[first, second] = index[second, first] = torch.arange(len(first), device=device)
        self.index = index.flatten()
        self.off_diagonal = 1 - torch.eye(n_atoms, dtype=positions.dtype, device=device)
        self.sign = torch.ones_like(self.off_diagonal)
        self.sign[second, first] = -1

    def expand(self, values: Float[Tensor, "batch pairs *features"], odd: bool = False) -> Tensor:
        """Values at (centre, other); `odd` ones change sign with the direction."""
        dense = values.index_select(1, self.index).unflatten(1, (self.n_atoms, self.n_atoms))
        mask = self.off_diagonal * self.sign if odd else self.off_diagonal
        return dense * mask.reshape(self.n_atoms, self.n_atoms, *[1] * (values.dim() - 2))


def density_tangents(
    field: LocalDensityField,
    radial: Tensor,
    radial_slope: Tensor,
    densities: list[Tensor],
    geometry: PairGeometry,
    dense: DenseLayout,
) -> list[DegreeTangents]:
    """Derivatives of the densities of all degrees and of their projections on the edges."""
    vectors = dense.expand(geometry.vectors, odd=True)
    inverse_softened = dense.expand(1 / geometry.softened).unsqueeze(-1)
    distances = dense.expand(geometry.distances).unsqueeze(-1)
    inverse_distances = dense.expand(1 / geometry.distances).unsqueeze(-1)
    values = DENSITY_SCALE * dense.expand(radial)
    slopes = DENSITY_SCALE * dense.expand(radial_slope)
    angular = [
        dense.expand(harmonic, odd=degree % 2 == 1)
        for degree, harmonic in enumerate(geometry.harmonics)
    ]
    tangents = []
    for degree, density in enumerate(densities):
        chosen = slice(degree * field.n_channels, (degree + 1) * field.n_channels)
        value, slope, harmonic = values[..., chosen], slopes[..., chosen], angular[degree]
        # S_l(r/softened): the radial part of the derivative, then the angular one
        outer = torch.einsum("bija,bijm->bijam", vectors, harmonic)
        along = slope * inverse_distances - degree * value * inverse_softened**2
        own = torch.einsum("bijc,bijam->bicam", along, outer)
        if degree > 0:
            constants = gradient_tensor(degree).to(value)
            gradient = torch.einsum("bijp,pam->bijam", angular[degree - 1], constants)
            across = value * inverse_softened
            own = own + torch.einsum("bijc,bijam->bicam", across, gradient)
        fade = degree * (field.softening * inverse_softened) ** 2
        stretch = slope * distances + fade * value
        near = torch.einsum("bijm,bicm->bijc", harmonic, density)
        far = (-1) ** degree * torch.einsum("bijm,bjcm->bijc", harmonic, density)
        norm = harmonic.square().sum(-1, keepdim=True)
        near_rate = fade * near + torch.einsum("bijam,bicam->bijc", outer, own)
        far_rate = fade * far + stretch * norm
        tangents.append(DegreeTangents(own, stretch, far, near_rate, far_rate))
    return tangents


def node_tangents(
    field: LocalDensityField,
    tangents: list[DegreeTangents],
    densities: list[Tensor],
    nodes: NodeFeatures,
    modulation: TimeModulation,
) -> tuple[Float[Tensor, "batch atoms 3 hidden"], Float[Tensor, "batch atoms atoms hidden"]]:
    """Rates of the hidden layer of an atom: as it moves along each axis, and as the far end."""
    own_parts = [tangents[0].own.squeeze(-1).transpose(-1, -2)]
    far_parts = [tangents[0].stretch]
    for degree, (tangent, density) in enumerate(zip(tangents, densities, strict=True)):
        mixing = field.mixing[degree]
        both = torch.einsum("bncm,cd->bndm", density, mixing)
        paired = torch.einsum("bncam,bncm->bnac", tangent.own, both)
        mixed_own = torch.einsum("bncam,cd->bndam", tangent.own, mixing)
        paired = paired + torch.einsum("bndam,bndm->bnad", mixed_own, density)
        own_parts.append(paired / (2 * degree + 1))
        far = tangent.stretch * (tangent.far @ mixing) + (tangent.stretch @ mixing) * tangent.far
        far_parts.append(far / (2 * degree + 1))
    slope = silu_slope(nodes.pre_activation) * (1 + modulation.node_scale)
    weight = field.node_input.weight
    own_rate = slope.unsqueeze(-2) * (torch.cat(own_parts, -1) @ weight.T)
    far_rate = slope.unsqueeze(-3) * (torch.cat(far_parts, -1) @ weight.T)
    return own_rate, far_rate


def edge_tangents(
    field: LocalDensityField,
    stretched: Tensor,
    tangents: list[DegreeTangents],
    own_rate: Tensor,
    far_rate: Tensor,
    edges: EdgeActivations,
    nodes: NodeFeatures,
    modulation: TimeModulation,
    geometry: PairGeometry,
    dense: DenseLayout,
) -> Float[Tensor, "batch atoms atoms"]:
    """D phi at every (centre, other), as the centre moves along the edge."""
    vectors = dense.expand(geometry.vectors, odd=True)
    embedding_weight = field.node_embedding.weight
    rate = dense.expand(stretched @ field.edge_radial.weight.T)
    rate = rate + torch.einsum("bija,biah->bijh", vectors, own_rate @ embedding_weight.T)
    rate = rate + far_rate @ embedding_weight.T
    projected = [
        (tangent.near_rate + tangent.far_rate) / (2 * degree + 1) ** 0.5
        for degree, tangent in enumerate(tangents)
    ]
    rate = rate + torch.cat(projected, -1) @ field.edge_densities.weight.T
    scale = (1 + modulation.edge_scale).unsqueeze(1)
    rate = rate * scale * dense.expand(silu_slope(edges.first))
    rate = (rate @ field.edge_hidden.weight.T) * dense.expand(silu_slope(edges.second))
    gates = field.output + modulation.gates + nodes.gates
    gate_rate = own_rate @ field.node_gates.weight.T
    output = torch.einsum("bijh,biah->bija", dense.expand(edges.output), gate_rate)
    return torch.einsum("bijh,bih->bij", rate, gates) + (output * vectors).sum(-1)


def vector_trace(
    field: LocalDensityField,
    tangent: DegreeTangents,
    own_rate: Tensor,
    nodes: NodeFeatures,
    densities: list[Tensor],
    n_dims: int,
) -> Float[Tensor, "batch"]:
    """Trace of the vector term sum_c psi_c A^1c over the axes that exist."""
    weight_rate = own_rate @ field.node_vectors.weight.T
    turning = torch.einsum("bnac,bnca->b", weight_rate[..., :n_dims, :], densities[1][..., :n_dims])
    stretching = tangent.own.diagonal(dim1=-2, dim2=-1)[..., :n_dims].sum(-1)
    return turning + (nodes.vector_weights * stretching).sum(dim=(-1, -2))


def silu_slope(values: Tensor) -> Tensor:
    """Derivative of silu(x) = x sigmoid(x)."""
    sigmoid = torch.sigmoid(values)
    return sigmoid * (1 + values * (1 - sigmoid))
