"""Exact divergence of the local-density field from one directional derivative per edge.

Moving atom i along e_a changes its own density A_i through all its edges, and the density of any
other atom j through the edge (i, j) alone. For a term phi(x) (x_i - x_j) of the velocity of atom i

    tr d[phi r_ij]/dx_i = dims * phi + D phi,    D = derivative as x_i moves along r_ij:

the edge (i, j) then stretches at rate d_ij without turning. With phi = <z_ij, g_i> this is

    D phi = <c_ij, D a_ij> + <z_ij, D g_i>,

where a_ij enters the edge perceptron and c_ij is the gate g_i pulled back through it. D a_ij has a
part that is even in i and j (the stretched edge), one through the far atom's density A_j, which
changes along Y(u_ij) only, and one through the centre's A_i. Sums over the edges of an atom are
taken before anything is multiplied by the derivatives of its density.

Tensors of edges are `(batch, centre, edge, ...)`, those of `Surroundings` `(batch, centre, ...,
edge)`: the centre is the atom that moves, and each of its edges leads to another atom. Edges that
are padding, as the diagonal of all pairs is, count nothing, because vectors and harmonics vanish
there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu

from boltztilt.networks.local_density_features import (
    DENSITY_SCALE,
    EdgeActivations,
    ForwardPass,
    NodeFeatures,
    PairGeometry,
    Surroundings,
    TimeModulation,
    switched,
)
from boltztilt.networks.pair_layout import PairLayout
from boltztilt.sampling.flow import resting_rate

if TYPE_CHECKING:
    from boltztilt.networks.local_density import LocalDensityField


class PairRates(NamedTuple):
    """Rates of a neighbour's contribution R(d) Y(u) to a density, the same at both ends.

    Its gradient is `along` r_a Y_m + `across` dY_m/du_a, and it grows at the rate `stretch` Y_m
    when the edge stretches, of which softened harmonics contribute `fade` R Y_m. One per channel.
    """

    along: Float[Tensor, "batch pairs densities"]
    across: Float[Tensor, "batch pairs densities"]
    stretch: Float[Tensor, "batch pairs densities"]
    fade: Float[Tensor, "batch pairs densities"]


class PulledBack(NamedTuple):
    """Gates of the centre pulled back to the embeddings and projections on an edge, and both."""

    inputs: Float[Tensor, "batch atoms edges hidden"]
    embedding: Float[Tensor, "batch atoms edges hidden"]
    projections: Float[Tensor, "batch atoms edges densities"]


def velocity_and_divergence(
    field: LocalDensityField,
    times: Float[Tensor, "batch"],
    positions: Float[Tensor, "batch atoms dims"],
) -> tuple[Float[Tensor, "batch atoms dims"], Float[Tensor, "batch"]]:
    """The field's velocity, as `forward` gives it, and the trace of its Jacobian."""
    passed = field.forward_pass(times, positions)
    layout, geometry, around = passed.layout, passed.geometry, passed.around
    densities, nodes, edges, gates = passed.densities, passed.nodes, passed.edges, passed.gates
    modulation = passed.modulation
    basis_slope, radial_slope = radial_slopes(field, times, passed)

    n_dims = positions.shape[-1]
    learned = field.local_velocity(passed)[..., :n_dims]
    slopes = edge_slopes(edges, modulation, geometry)
    node_slope = silu_slope(nodes.pre_activation) * (1 + modulation.node_scale)
    both_gates = gates_of_both_ends(field, gates, layout)
    rates = pair_rates(field, passed.radial, radial_slope, geometry)
    stretched = stretched_inputs(field, basis_slope, passed.projections, rates, geometry)
    pulled = pull_back_to_centres(field, gates, slopes, layout)
    own = own_density_rates(field, rates, around, layout)
    pull = pull_on_centres(field, pulled, edges, densities, around, layout)
    divergence = (
        n_dims * passed.factors.sum((1, 2))
        + _dot(pull_back(field, both_gates, slopes), stretched)
        + switch_trace(edges, both_gates, geometry)
        + far_trace(field, pulled, node_slope, rates, densities, around, layout)
        + own_trace(field, own, pull * node_slope.unsqueeze(-2), densities)
        + projection_trace(field, own, pulled, around)
        + vector_trace(own[1], nodes, n_dims)
    )
    if field.collective is not None:
        collective, trace = field.collective.velocity_and_divergence(times, positions)
        learned, divergence = learned + collective, divergence + trace
    at_rest = resting_rate(times) * n_dims * (positions.shape[-2] - 1)
    return field.velocity(times, positions, learned), at_rest + field.fading(times) * divergence


def gates_of_both_ends(
    field: LocalDensityField, gates: Float[Tensor, "batch atoms hidden"], layout: PairLayout
) -> Float[Tensor, "batch pairs hidden"]:
    """Sum of what the two ends of every pair multiply its activations by."""
    ends = layout.sum_ends(gates)
    if field.kinds is None:
        return ends
    return ends + 2 * field.kinds.edge_gates[field.kinds.pairs(layout)]


def pair_rates(
    field: LocalDensityField, radial: Tensor, radial_slope: Tensor, geometry: PairGeometry
) -> PairRates:
    """Rates of R(d) S_l(r / softened): of its radial part and of its softened harmonics."""
    degrees = torch.arange(field.max_degree + 1, device=radial.device)
    degrees = degrees.repeat_interleave(field.n_channels).to(radial.dtype)
    distances = geometry.distances.unsqueeze(-1)
    inverse_softened = 1 / geometry.softened.unsqueeze(-1)
    value, slope = DENSITY_SCALE * radial, DENSITY_SCALE * radial_slope
    fade = degrees * (field.softening * inverse_softened).square()
    return PairRates(
        along=slope / distances - degrees * value * inverse_softened.square(),
        across=value * inverse_softened,
        stretch=slope * distances + fade * value,
        fade=fade,
    )


def stretched_inputs(
    field: LocalDensityField,
    basis_slope: Tensor,
    projections: Tensor,
    rates: PairRates,
    geometry: PairGeometry,
) -> Float[Tensor, "batch pairs hidden"]:
    """D a of an edge that stretches between two atoms whose features stay as they are.

    Its projections change with the softened harmonics, and with what this edge itself contributes
    to the density at the far end.
    """
    norms = [harmonic.square().sum(-1, keepdim=True) for harmonic in geometry.harmonics]
    roots = [(2 * degree + 1) ** 0.5 for degree in range(len(norms))]
    stretches = rates.stretch.split(field.n_channels, -1)
    contributed = [
        stretch * (norm / root) for stretch, norm, root in zip(stretches, norms, roots, strict=True)
    ]
    projected = rates.fade * projections + torch.cat(contributed, -1)
    stretched = basis_slope * geometry.distances.unsqueeze(-1)
    return stretched @ field.edge_radial.weight.T + projected @ field.edge_densities.weight.T


def edge_slopes(
    edges: EdgeActivations, modulation: TimeModulation, geometry: PairGeometry
) -> tuple[Float[Tensor, "batch pairs hidden"], Float[Tensor, "batch pairs hidden"]]:
    """Derivatives of both layers of the edge perceptron with respect to their linear inputs."""
    first = silu_slope(edges.first) * (1 + modulation.edge_scale)
    return first, switched(silu_slope(edges.second), geometry)


def radial_slopes(
    field: LocalDensityField, times: Tensor, passed: ForwardPass
) -> tuple[Float[Tensor, "batch pairs features"], Float[Tensor, "batch pairs densities"]]:
    """Derivatives by distance of radial functions, and of what pairs contribute to densities."""
    slopes = field.radial_slopes(times, passed.geometry, passed.layout)
    of_densities = field.scaled_by_kind(field.radial(slopes), passed.layout)
    if passed.geometry.switch is None:
        return slopes, of_densities
    switch, switch_slope = passed.geometry.switch
    basis = field.radial_features(times, passed.geometry, passed.layout)
    unswitched = field.scaled_by_kind(field.radial(basis), passed.layout)
    return slopes, of_densities * switch + unswitched * switch_slope


def switch_trace(
    edges: EdgeActivations, gates: Float[Tensor, "batch pairs hidden"], geometry: PairGeometry
) -> Float[Tensor, "batch"] | float:
    """What the switch of a cutoff itself adds to D phi of both ends as a pair stretches."""
    if geometry.switch is None:
        return 0.0
    stretch = geometry.switch[1] * geometry.distances.unsqueeze(-1)
    return _dot(stretch * silu(edges.second), gates)


def pull_back(
    field: LocalDensityField, gates: Tensor, slopes: tuple[Tensor, Tensor]
) -> Float[Tensor, "*edges hidden"]:
    """c = (dz/da)^T g, the gates pulled back through the edge perceptron."""
    return slopes[0] * ((slopes[1] * gates) @ field.edge_hidden.weight)


def pull_back_to_centres(
    field: LocalDensityField,
    gates: Float[Tensor, "batch atoms hidden"],
    slopes: tuple[Tensor, Tensor],
    layout: PairLayout,
) -> PulledBack:
    """The gates of every centre pulled back along all its edges."""
    wide = field.gates_of_edges(gates, layout)
    inputs = pull_back(field, wide, (layout.copies(slopes[0]), layout.copies(slopes[1])))
    weight = torch.cat([field.node_embedding.weight, field.edge_densities.weight], dim=1)
    embedding, projections = (inputs @ weight).split(
        [field.node_embedding.in_features, field.edge_densities.in_features], -1
    )
    return PulledBack(inputs, embedding, projections)


def far_trace(
    field: LocalDensityField,
    pulled: PulledBack,
    node_slope: Float[Tensor, "batch atoms hidden"],
    rates: PairRates,
    densities: list[Tensor],
    around: Surroundings,
    layout: PairLayout,
) -> Float[Tensor, "batch"]:
    """Sum of <c, D a> through the invariants of the far atoms, whose A_j grow along Y(u_ji)."""
    weights = (layout.reverse(pulled.embedding) * node_slope.unsqueeze(2)) @ field.node_input.weight
    direct, *by_degree = weights.split(field.n_channels, -1)
    stretches = layout.copies(rates.stretch).split(field.n_channels, -1)
    mixed = [
        stretch @ mixing
        for stretch, mixing in zip(
            rates.stretch.split(field.n_channels, -1), field.mixing, strict=True
        )
    ]
    mixed_stretches = layout.copies(torch.cat(mixed, -1)).split(field.n_channels, -1)
    total = (around.harmonics[0] @ (stretches[0] * direct)).sum(dim=(1, 2, 3))
    for degree, (weight, harmonic) in enumerate(zip(by_degree, around.harmonics, strict=True)):
        on_mixed = harmonic @ (stretches[degree] * weight)
        on_density = harmonic @ (mixed_stretches[degree] * weight)
        density = densities[degree]
        mixed = density @ field.mixing[degree]
        total = total + (_dot(on_mixed, mixed) + _dot(on_density, density)) / (2 * degree + 1)
    return total


def own_density_rates(
    field: LocalDensityField, rates: PairRates, around: Surroundings, layout: PairLayout
) -> list[Float[Tensor, "batch atoms axes_orders channels"]]:
    """dA_i/dx_i by degree, axes and orders in one index."""
    alongs = layout.copies(rates.along).split(field.n_channels, -1)
    acrosses = layout.copies(rates.across).split(field.n_channels, -1)
    by_degree = []
    for degree, (along, across) in enumerate(zip(alongs, acrosses, strict=True)):
        own = around.outer(degree) @ along
        if degree > 0:
            lower = around.harmonics[degree - 1] @ across
            gradient = field.get_buffer(f"gradient_tensor_{degree}")
            own = own + gradient.to(lower).flatten(1).T @ lower
        by_degree.append(own)
    return by_degree


def pull_on_centres(
    field: LocalDensityField,
    pulled: PulledBack,
    edges: EdgeActivations,
    densities: list[Tensor],
    around: Surroundings,
    layout: PairLayout,
) -> Float[Tensor, "batch atoms 3 hidden"]:
    """What the hidden layer of a centre is multiplied by in the trace, for each axis it moves on.

    That is through its embedding, through its gates, and through the weights of its vectors.
    """
    embedding = around.vectors @ pulled.inputs @ field.node_embedding.weight
    gates = around.vectors @ layout.copies(edges.output) @ field.node_gates.weight
    vectors = densities[1] @ field.node_vectors.weight
    return embedding + gates + vectors


def own_trace(
    field: LocalDensityField,
    own: list[Tensor],
    pull: Float[Tensor, "batch atoms 3 hidden"],
    densities: list[Tensor],
) -> Float[Tensor, "batch"]:
    """The pull times the rates of the invariants of the centre as it moves along each axis."""
    direct, *by_degree = (pull @ field.node_input.weight).split(field.n_channels, -1)
    total = _dot(own[0], direct)
    for degree, (rate, weight) in enumerate(zip(own, by_degree, strict=True)):
        density = densities[degree]
        mixed_rate, mixed = rate @ field.mixing[degree], density @ field.mixing[degree]
        change = _by_axis(rate) * mixed.unsqueeze(2) + _by_axis(mixed_rate) * density.unsqueeze(2)
        total = total + _dot(change.sum(-2), weight) / (2 * degree + 1)
    return total


def projection_trace(
    field: LocalDensityField, own: list[Tensor], pulled: PulledBack, around: Surroundings
) -> Float[Tensor, "batch"]:
    """Sum of <c, D a> through the centre's density as its edges see it."""
    total = torch.zeros_like(own[0][:, 0, 0, 0])
    for degree, weight in enumerate(pulled.projections.split(field.n_channels, -1)):
        on_rates = around.outer(degree) @ weight
        total = total + _dot(on_rates, own[degree]) / (2 * degree + 1) ** 0.5
    return total


def vector_trace(
    own: Float[Tensor, "batch atoms 9 channels"], nodes: NodeFeatures, n_dims: int
) -> Float[Tensor, "batch"]:
    """Trace of the vector term sum_c psi_c A^1c at fixed psi, over the axes that exist."""
    stretching = _by_axis(own).diagonal(dim1=2, dim2=3)[..., :n_dims].sum(-1)
    return _dot(nodes.vector_weights, stretching)


def silu_slope(values: Tensor) -> Tensor:
    """Derivative of silu(x) = x sigmoid(x)."""
    sigmoid = torch.sigmoid(values)
    return torch.lerp(values * sigmoid, sigmoid.new_ones(()), sigmoid)


def _by_axis(rate: Float[Tensor, "batch atoms axes_orders channels"]) -> Tensor:
    """Rates of a density with the axis of the motion in an index of its own."""
    return rate.unflatten(2, (3, -1))


def _dot(first: Tensor, second: Tensor) -> Float[Tensor, "batch"]:
    """Inner product of everything but the batch."""
    return (first * second).flatten(1).sum(-1)
