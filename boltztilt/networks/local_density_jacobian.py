"""The whole Jacobian of the local-density field for O(n³) work, in place of 3n products.

With densities A_k that depend on positions, and everything else the field makes of both,

    dv_i/dx_j = dv_i/dx_j at fixed A + sum_k dv_i/dA_k dA_k/dx_j.

The field is one message deep: the density A_k of another atom enters v_i through the edge (i, k)
alone, as phi_ik (x_i - x_k). Its derivative is the product of that vector with the gradient of
phi_ik, so that the sum over k is n products of matrices of 3n, n and as many as A_k has components.

Tensors of edges are `(batch, centre, edge, ...)` as in `local_density_divergence`, gradients by the
vector of an edge `(batch, centre, 3, ..., edge)` as vectors are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from boltztilt.networks.local_density_divergence import (
    PulledBack,
    edge_slopes,
    pull_back_to_centres,
    pull_on_centres,
    radial_slopes,
    silu_slope,
)
from boltztilt.networks.local_density_features import DENSITY_SCALE, NodeFeatures, Surroundings

if TYPE_CHECKING:
    from boltztilt.networks.local_density import LocalDensityField


class LearnedPart(NamedTuple):
    """What the field has learned, before its mean is removed and it fades, and its Jacobian."""

    values: Float[Tensor, "batch atoms dims"]
    jacobian: Float[Tensor, "batch atoms dims coordinates"]


def has_jacobian(field: LocalDensityField) -> bool:
    """Whether `learned_jacobian` knows the field: that of alike atoms without a cutoff."""
    return field.kinds is None and field.collective is None and field.cutoff is None


def learned_jacobian(
    field: LocalDensityField,
    times: Float[Tensor, "batch"],
    positions: Float[Tensor, "batch atoms dims"],
) -> LearnedPart:
    """The learned part of the field, as `learned` gives it, and its derivatives by all positions.

    Only for fields of which `has_jacobian` is true.
    """
    passed = field.forward_pass(times, positions)
    layout, geometry, around = passed.layout, passed.geometry, passed.around
    densities, nodes, edges, gates = passed.densities, passed.nodes, passed.edges, passed.gates
    basis_slope, radial_slope = radial_slopes(field, times, passed)
    n_dims = positions.shape[-1]
    values = field.local_velocity(passed)[..., :n_dims]

    values_and_slopes = (layout.copies(each) for each in (passed.radial, radial_slope))
    edge_radial, edge_slope = (each.split(field.n_channels, -1) for each in values_and_slopes)
    lengths, softened = (
        layout.copies(each.unsqueeze(-1)).transpose(-1, -2)
        for each in (geometry.distances, geometry.softened)
    )
    directions = around.vectors / lengths
    turning = harmonic_gradients(field, softened, around)
    growth = density_gradients(edge_radial, edge_slope, directions, turning, around)

    node_slope = silu_slope(nodes.pre_activation) * (1 + passed.modulation.node_scale)
    slopes_of_edges = edge_slopes(edges, passed.modulation, geometry)
    pulled = pull_back_to_centres(field, gates, slopes_of_edges, layout)
    pull = pull_on_centres(field, pulled, edges, densities, around, layout)
    slopes = edge_gradients(
        field, pulled, layout.copies(basis_slope), directions, densities, turning
    )
    far = far_pulls(field, pulled, node_slope, densities, around)
    own = own_pulls(field, pulled, pull * node_slope.unsqueeze(2), densities, around, nodes)
    jacobian = at_fixed_densities(passed.factors, slopes, around)
    jacobian = jacobian + through_densities(far, own, growth, around)
    of_coordinates = jacobian[:, :, :n_dims, :n_dims].transpose(-1, -2).flatten(3)
    return LearnedPart(values, of_coordinates)


def harmonic_gradients(
    field: LocalDensityField,
    softened: Float[Tensor, "batch atoms 1 edges"],
    around: Surroundings,
) -> list[Float[Tensor, "batch atoms 3 orders edges"]]:
    """dY_lm(u)/dr_a by degree, for u = r / softened length."""
    gradients = [torch.zeros_like(around.vectors).unsqueeze(3)]
    for degree in range(1, field.max_degree + 1):
        tensor = field.get_buffer(f"gradient_tensor_{degree}").to(softened)
        turned = (tensor.flatten(1).T @ around.harmonics[degree - 1]) / softened
        faded = around.outer(degree) * (degree / softened.square())
        gradients.append((turned - faded).unflatten(2, (3, 2 * degree + 1)))
    return gradients


def density_gradients(
    radial: Sequence[Tensor],
    radial_slope: Sequence[Tensor],
    directions: Float[Tensor, "batch atoms 3 edges"],
    turning: list[Tensor],
    around: Surroundings,
) -> Float[Tensor, "batch atoms 3 edges densities"]:
    """What the density of the centre gains as the vector of an edge grows along each axis."""
    by_degree = []
    for degree, gradient in enumerate(turning):
        along = directions.unsqueeze(3) * around.harmonics[degree].unsqueeze(2)
        along, turned = (each.transpose(-1, -2).unsqueeze(-1) for each in (along, gradient))
        slope, value = (each[degree][:, :, None, :, None] for each in (radial_slope, radial))
        by_degree.append((DENSITY_SCALE * (along * slope + turned * value)).flatten(4))
    return torch.cat(by_degree, -1)


def edge_gradients(
    field: LocalDensityField,
    pulled: PulledBack,
    basis_slope: Tensor,
    directions: Float[Tensor, "batch atoms 3 edges"],
    densities: list[Tensor],
    turning: list[Tensor],
) -> Float[Tensor, "batch atoms 3 edges"]:
    """Gradient of phi_ik by the vector of its edge, at fixed densities."""
    stretch = ((pulled.inputs @ field.edge_radial.weight) * basis_slope).sum(-1)
    total = stretch.unsqueeze(2) * directions
    weights = pulled.projections.split(field.n_channels, -1)
    for degree, (weight, density) in enumerate(zip(weights, densities, strict=True)):
        of_centre = density @ weight.transpose(-1, -2)
        of_other = (density @ weight.permute(0, 2, 3, 1)).transpose(1, 3)
        seen = (of_centre + (-1) ** degree * of_other) * (2 * degree + 1) ** -0.5
        total = total + (turning[degree] * seen.unsqueeze(2)).sum(3)
    return total


def far_pulls(
    field: LocalDensityField,
    pulled: PulledBack,
    node_slope: Float[Tensor, "batch atoms hidden"],
    densities: list[Tensor],
    around: Surroundings,
) -> Float[Tensor, "batch others centres densities"]:
    """Gradient of phi_ik by the density A_k at the other end of its edge, `(batch, k, i, ...)`."""
    embedding = pulled.embedding.transpose(1, 2) * node_slope.unsqueeze(2)
    weights = embedding @ field.node_input.weight
    by_degree = through_invariants(field, weights, [each.unsqueeze(2) for each in densities])
    projected = pulled.projections.transpose(1, 2).split(field.n_channels, -1)
    # the edge as the other end sees it has the harmonic Y(u_ki)
    for degree, (weight, harmonic) in enumerate(zip(projected, around.harmonics, strict=True)):
        seen = weight.unsqueeze(-2) * harmonic.transpose(-1, -2).unsqueeze(-1)
        by_degree[degree] = by_degree[degree] + (2 * degree + 1) ** -0.5 * seen
    return torch.cat([each.flatten(3) for each in by_degree], -1)


def own_pulls(
    field: LocalDensityField,
    pulled: PulledBack,
    pull: Float[Tensor, "batch atoms 3 hidden"],
    densities: list[Tensor],
    around: Surroundings,
    nodes: NodeFeatures,
) -> Float[Tensor, "batch atoms 3 densities"]:
    """Derivatives of what the centre learns, along each axis, by its own density."""
    weights = pull @ field.node_input.weight
    by_degree = through_invariants(field, weights, [each.unsqueeze(2) for each in densities])
    projected = pulled.projections.split(field.n_channels, -1)
    for degree, weight in enumerate(projected):
        seen = (around.outer(degree) @ weight).unflatten(2, (3, -1))
        by_degree[degree] = by_degree[degree] + (2 * degree + 1) ** -0.5 * seen
    identity = torch.eye(3, dtype=pull.dtype, device=pull.device)
    by_degree[1] = by_degree[1] + identity.unsqueeze(-1) * nodes.vector_weights[:, :, None, None]
    return torch.cat([each.flatten(3) for each in by_degree], -1)


def through_invariants(
    field: LocalDensityField, weights: Tensor, densities: list[Tensor]
) -> list[Tensor]:
    """Gradients by the densities, `(..., orders, channels)` by degree, of weighted invariants."""
    direct, *by_degree = weights.split(field.n_channels, -1)
    gradients = []
    for degree, (weight, density) in enumerate(zip(by_degree, densities, strict=True)):
        mixing, wide = field.mixing[degree], weight.unsqueeze(-2)
        gradient = wide * (density @ mixing) + torch.einsum("...c,dc->...d", wide * density, mixing)
        gradients.append(gradient / (2 * degree + 1))
    gradients[0] = gradients[0] + direct.unsqueeze(-2)
    return gradients


def at_fixed_densities(
    phi: Float[Tensor, "batch atoms edges"],
    slopes: Float[Tensor, "batch atoms 3 edges"],
    around: Surroundings,
) -> Float[Tensor, "batch atoms 3 3 atoms"]:
    """d/dx_j of sum_k phi_ik r_ik through the vectors r_ik, `(batch, i, axis, axis of x_j, j)`.

    The vector of an edge grows with its centre, and shrinks with its other end; phi_ii is zero.
    """
    identity = torch.eye(phi.shape[1], dtype=phi.dtype, device=phi.device)
    axes = torch.eye(3, dtype=phi.dtype, device=phi.device)
    edge = around.vectors.unsqueeze(3) * slopes.unsqueeze(2)
    edge = edge + phi[:, :, None, None] * axes.unsqueeze(-1)
    return identity[:, None, None] * edge.sum(-1, keepdim=True) - edge


def through_densities(
    far: Float[Tensor, "batch others centres densities"],
    own: Float[Tensor, "batch atoms 3 densities"],
    growth: Float[Tensor, "batch atoms 3 edges densities"],
    around: Surroundings,
) -> Float[Tensor, "batch atoms 3 3 atoms"]:
    """sum_k dv_i/dA_k dA_k/dx_j: A_k gains with its own position what it loses with the others'."""
    n_atoms = far.shape[1]
    identity = torch.eye(n_atoms, dtype=far.dtype, device=far.device)
    both = torch.cat([far, own], 2)
    # (batch, k, i or own axis, (axis of x_j, j)): rows as the sum over k wants them, without a copy
    changes = both @ growth.flatten(2, 3).transpose(-1, -2)
    others, of_itself = changes.split([n_atoms, 3], 2)
    itself, of_own = changes.unflatten(-1, (3, n_atoms)).sum(-1).split([n_atoms, 3], 2)
    lost = around.vectors @ others.transpose(1, 2)  # sum over k
    lost = (lost + of_itself).unflatten(-1, (3, n_atoms))
    won = around.vectors.unsqueeze(3) * itself.permute(0, 2, 3, 1).unsqueeze(2)
    won = won + identity[:, None, None] * of_own.unsqueeze(-1)
    return won - lost
