"""The local-density velocity field: one message deep, so that its exact divergence costs O(n²).

Every atom sees the others only through its own edges. Moving atom i therefore changes the features
of another atom j through the single edge (i, j), and the trace of the Jacobian needs one
directional derivative per edge instead of one Jacobian-vector product per coordinate.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from boltztilt.geometry import remove_mean
from boltztilt.networks.atom_kinds import N_ZOOMED, AtomKinds, Pairing
from boltztilt.networks.collective import CollectiveField
from boltztilt.networks.harmonics import gradient_tensor, harmonics, softened_length
from boltztilt.networks.local_density_divergence import velocity_and_divergence
from boltztilt.networks.local_density_features import (
    DENSITY_SCALE,
    SOFTENING,
    EdgeActivations,
    ForwardPass,
    NodeFeatures,
    PairGeometry,
    Surroundings,
    TimeModulation,
    switched,
)
from boltztilt.networks.pair_layout import NeighbourPairs, PairLayout, pair_layout
from boltztilt.networks.precision import full_precision
from boltztilt.networks.radial import WarpedBumps, switch_with_derivative
from boltztilt.networks.time_features import TimeFeatures
from boltztilt.sampling.flow import resting_rate


class LocalDensityField(nn.Module):
    """Velocity of atoms that turns, reflects, shifts and, where they are alike, permutes with them.

    With u = (x_i - x_j) / softened distance, and learned radial functions R of the distance,

        A_i^lcm = sum_j R_lc(d_ij) Y_lm(u_ij)          density of neighbours around atom i
        p_i     = A_i^0, sum_m A_i^lcm (A_i^l M_l)^cm    its rotation invariants
        B_ij^lc = sum_m Y_lm(u_ij) A_i^lcm              the density of i seen along the edge
        z_ij    = MLP(d_ij, h(p_i) + h(p_j), B_ij + B_ji, t)   symmetric in i and j
        v_i     = sum_j <z_ij, q(p_i, t)> (x_i - x_j) + sum_c psi_c(p_i, t) A_i^1c

    The velocity is `skip(t) x + c(t) (v - mean v)`, where the skip is the exact field between two
    equal Gaussians and c(t) = (1-t) / sqrt((1-t)² + noise_scale²) switches the network off where
    the data already are at rest. Two-dimensional positions are padded with zeros. Where atoms
    differ, R is scaled by the kind of the pair and follows the noise (`AtomKinds`), and the
    perceptrons are shifted by the kinds of atoms and of pairs; v_i then may have a part that sees
    the molecule as a whole (`CollectiveField`).

    Args:
        n_hidden: width of the perceptrons of atoms and edges.
        n_channels: channels of the density for each degree.
        max_degree: largest degree l of the spherical harmonics, at least 1.
        n_radial: number of radial functions.
        core, spread, reach: shape of the radial axis, see `WarpedBumps`.
        noise_scale: amount of noise 1 - t below which the learned part fades.
        cutoff: pairs farther apart do not see each other, and fade from 0.8 cutoff on; the cost
            then grows like the number of atoms. A cutoff beyond the cluster changes nothing.
        collective_width: width of the part that sees a whole molecule; 0 leaves it out.
        pairing: how the atoms differ; None if they are all alike.

    Reference:
        R. Drautz (2019), Atomic cluster expansion for accurate and transferable interatomic
        potentials, https://doi.org/10.1103/PhysRevB.99.014104 (the density A and its invariants).
    """

    def __init__(
        self,
        n_hidden: int = 64,
        n_channels: int = 16,
        max_degree: int = 2,
        n_radial: int = 32,
        core: float = 1.0,
        spread: float = 0.4,
        reach: float = 6.0,
        noise_scale: float = 0.08,
        cutoff: float | None = None,
        collective_width: int = 0,
        pairing: Pairing | None = None,
    ) -> None:
        super().__init__()
        if cutoff is not None and not cutoff > core:
            raise ValueError(f"cutoff = {cutoff} must be larger than core = {core}, or None")
        if max_degree < 1 or n_hidden < 1 or n_channels < 1:
            raise ValueError(
                f"the local-density field needs max_degree, n_hidden and n_channels of at least 1, "
                f"got {max_degree=}, {n_hidden=}, {n_channels=}"
            )
        self.n_channels, self.max_degree = n_channels, max_degree
        self.softening = SOFTENING * core
        self.noise_scale = noise_scale
        self.cutoff = cutoff
        n_densities = n_channels * (max_degree + 1)
        self.basis = WarpedBumps(n_radial, core, spread, reach)
        self.kinds = None if pairing is None else AtomKinds(pairing, n_hidden, n_densities)
        n_radial += 0 if self.kinds is None else N_ZOOMED
        self.radial = nn.Linear(n_radial, n_densities, bias=False)
        self.mixing = nn.ParameterList(
            torch.randn(n_channels, n_channels) / math.sqrt(n_channels)
            for _ in range(max_degree + 1)
        )
        self.time_features = TimeFeatures(n_hidden)
        self.modulation = nn.Linear(n_hidden, 5 * n_hidden)
        self.node_input = nn.Linear(n_channels + n_densities, n_hidden)
        self.node_embedding = nn.Linear(n_hidden, n_hidden)
        self.node_gates = nn.Linear(n_hidden, n_hidden)
        self.node_vectors = nn.Linear(n_hidden, n_channels)
        self.edge_radial = nn.Linear(n_radial, n_hidden)
        self.edge_densities = nn.Linear(n_densities, n_hidden, bias=False)
        self.edge_hidden = nn.Linear(n_hidden, n_hidden)
        self.output = nn.Parameter(torch.zeros(n_hidden))
        self.collective: CollectiveField | None = None
        if collective_width > 0:
            if pairing is None:
                raise ValueError(
                    f"collective_width = {collective_width} needs atoms that differ, but all are "
                    "alike: set it to 0"
                )
            self.collective = CollectiveField(pairing, collective_width)
        for degree in range(1, max_degree + 1):
            self.register_buffer(
                f"gradient_tensor_{degree}", gradient_tensor(degree), persistent=False
            )
        self.silence()

    def silence(self) -> None:
        """Zeroes the last weights, and so `correction`; what leads up to them stays.

        A fresh field is silent, and so the exact one at a = 0, which tilting needs.
        """
        last = [self.output, *self.node_gates.parameters(), *self.node_vectors.parameters()]
        if self.kinds is not None:
            last.append(self.kinds.edge_gates)
        with torch.no_grad():
            for parameter in last:
                parameter.zero_()
            for parameter in self.modulation.parameters():
                parameter[-len(self.output) :] = 0
        if self.collective is not None:
            self.collective.silence()

    def forward(
        self, times: Float[Tensor, "batch"], positions: Float[Tensor, "batch atoms dims"]
    ) -> Float[Tensor, "batch atoms dims"]:
        """The velocity of each configuration at its time."""
        return self.velocity(times, positions, self.learned(times, positions))

    def correction(
        self, times: Float[Tensor, "batch"], positions: Float[Tensor, "batch atoms dims"]
    ) -> Float[Tensor, "batch atoms dims"]:
        """The velocity without its skip: what is added to the field between two Gaussians."""
        return self.faded(times, self.learned(times, positions))

    def learned(
        self, times: Float[Tensor, "batch"], positions: Float[Tensor, "batch atoms dims"]
    ) -> Float[Tensor, "batch atoms dims"]:
        """The learned part of the velocity, before its mean is removed and it fades."""
        passed = self.forward_pass(times, positions)
        with full_precision(positions):
            learned = self.local_velocity(passed)[..., : positions.shape[-1]]
            if self.collective is not None:
                learned = learned + self.collective(times, positions)
        return learned

    def forward_pass(
        self, times: Float[Tensor, "batch"], positions: Float[Tensor, "batch atoms dims"]
    ) -> ForwardPass:
        """From the positions to the factors of x_i - x_j in the velocity of atom i."""
        layout = pair_layout(positions, self.cutoff)
        with full_precision(positions):
            geometry = self.pair_geometry(positions, layout)
            around = Surroundings.of(geometry, layout)
        basis = self.radial_features(times, geometry, layout)
        radial = switched(self.scaled_by_kind(self.radial(basis), layout), geometry)
        densities = self.densities(radial, around, layout)
        modulation = self.modulate(times)
        nodes = self.node_features(densities, modulation)
        projections = self.projections(densities, geometry, layout)
        edges = self.edge_activations(basis, projections, nodes, modulation, geometry, layout)
        gates = self.output + modulation.gates + nodes.gates
        factors = (layout.edges(edges.output) * self.gates_of_edges(gates, layout)).sum(-1)
        return ForwardPass(
            layout,
            geometry,
            around,
            radial,
            densities,
            modulation,
            nodes,
            projections,
            edges,
            gates,
            factors,
        )

    def velocity_and_divergence(
        self, times: Float[Tensor, "batch"], positions: Float[Tensor, "batch atoms dims"]
    ) -> tuple[Float[Tensor, "batch atoms dims"], Float[Tensor, "batch"]]:
        """The velocity and its exact divergence at the cost of a few evaluations."""
        return velocity_and_divergence(self, times, positions)

    def pair_geometry(self, positions: Tensor, layout: PairLayout) -> PairGeometry:
        """Vectors, distances and harmonics of all pairs, in three dimensions."""
        padded = nn.functional.pad(positions, (0, 3 - positions.shape[-1]))
        vectors = layout.difference(padded)
        distances = vectors.square().sum(-1).clamp(min=1e-20).sqrt()
        softened = softened_length(distances, self.softening)
        directions = vectors / softened.unsqueeze(-1)
        by_degree = [harmonics(directions, degree) for degree in range(self.max_degree + 1)]
        if self.cutoff is None:
            return PairGeometry(vectors, distances, softened, by_degree)
        assert isinstance(layout, NeighbourPairs)
        switch, slope = switch_with_derivative(distances, self.cutoff)
        real = layout.real.to(distances)
        switches = ((real * switch).unsqueeze(-1), (real * slope).unsqueeze(-1))
        return PairGeometry(vectors, distances, softened, by_degree, switches)

    def radial_features(
        self, times: Tensor, geometry: PairGeometry, layout: PairLayout
    ) -> Float[Tensor, "batch pairs features"]:
        """Radial functions of all pairs, those that follow the noise behind the others."""
        basis = self.basis(geometry.distances)
        if self.kinds is None:
            return basis
        return torch.cat([basis, self.kinds.zoomed(times, geometry.distances, layout)[0]], -1)

    def radial_slopes(
        self, times: Tensor, geometry: PairGeometry, layout: PairLayout
    ) -> Float[Tensor, "batch pairs features"]:
        """Derivatives of the radial functions with respect to distance."""
        slopes = self.basis.derivative(geometry.distances)
        if self.kinds is None:
            return slopes
        return torch.cat([slopes, self.kinds.zoomed(times, geometry.distances, layout)[1]], -1)

    def scaled_by_kind(
        self, radial: Float[Tensor, "batch pairs densities"], layout: PairLayout
    ) -> Float[Tensor, "batch pairs densities"]:
        """What pairs contribute to densities, told apart by kind where atoms differ."""
        if self.kinds is None:
            return radial
        return radial * self.kinds.density_scales[self.kinds.pairs(layout)]

    def densities(
        self,
        radial: Float[Tensor, "batch pairs densities"],
        around: Surroundings,
        layout: PairLayout,
    ) -> list[Float[Tensor, "batch atoms orders channels"]]:
        """A_i by degree, each scaled to a variance of order one for a dozen neighbours."""
        of_edges = layout.copies(radial).split(self.n_channels, -1)
        return [
            DENSITY_SCALE * (harmonic @ values)
            for values, harmonic in zip(of_edges, around.harmonics, strict=True)
        ]

    def modulate(self, times: Float[Tensor, "batch"]) -> TimeModulation:
        """Scales, shifts and gates of all layers at the given times."""
        return TimeModulation(*self.modulation(self.time_features(times))[:, None].chunk(5, -1))

    def node_features(self, densities: list[Tensor], modulation: TimeModulation) -> NodeFeatures:
        """Embedding, gates and vector weights of every atom."""
        invariants = [densities[0].squeeze(2)]
        for degree, density in enumerate(densities):
            mixed = density @ self.mixing[degree]
            invariants.append((density * mixed).sum(2) / (2 * degree + 1))
        linear = self.node_input(torch.cat(invariants, -1))
        pre_activation = linear * (1 + modulation.node_scale) + modulation.node_shift
        if self.kinds is not None:
            pre_activation = pre_activation + self.kinds.node_shifts[self.kinds.of_atom]
        hidden = silu(pre_activation)
        return NodeFeatures(
            pre_activation,
            self.node_embedding(hidden),
            self.node_gates(hidden),
            self.node_vectors(hidden),
        )

    def projections(
        self, densities: list[Tensor], geometry: PairGeometry, layout: PairLayout
    ) -> Float[Tensor, "batch pairs densities"]:
        """B_ij + B_ji, the densities of both ends seen along the edge, by degree and channel."""
        by_degree = []
        for degree, (density, angular) in enumerate(
            zip(densities, geometry.harmonics, strict=True)
        ):
            both_ends = layout.sum_ends(density.flatten(2), odd=degree % 2 == 1)
            both_ends = both_ends.unflatten(-1, density.shape[2:])
            projection = (both_ends * angular.unsqueeze(-1)).sum(2)
            by_degree.append(projection / math.sqrt(2 * degree + 1))
        return torch.cat(by_degree, -1)

    def edge_activations(
        self,
        basis: Tensor,
        projections: Tensor,
        nodes: NodeFeatures,
        modulation: TimeModulation,
        geometry: PairGeometry,
        layout: PairLayout,
    ) -> EdgeActivations:
        """Activations of the edge perceptron, symmetric in the two ends."""
        linear = self.edge_radial(basis) + self.edge_densities(projections)
        linear = linear + layout.sum_ends(nodes.embedding)
        first = linear * (1 + modulation.edge_scale) + modulation.edge_shift
        if self.kinds is not None:
            first = first + self.kinds.edge_shifts[self.kinds.pairs(layout)]
        second = self.edge_hidden(silu(first))
        return EdgeActivations(first, second, switched(silu(second), geometry))

    def gates_of_edges(
        self, gates: Float[Tensor, "batch atoms hidden"], layout: PairLayout
    ) -> Tensor:
        """What the centre multiplies the activations of its edges by, `(batch, atoms, edges, _)`.

        The axis of edges has length 1 where atoms are alike.
        """
        if self.kinds is None:
            return gates.unsqueeze(2)
        of_pairs = self.kinds.edge_gates[self.kinds.pairs(layout)]
        return gates.unsqueeze(2) + layout.copies(of_pairs.expand(len(gates), -1, -1))

    def local_velocity(self, passed: ForwardPass) -> Float[Tensor, "batch atoms 3"]:
        """What atoms learn from their surroundings."""
        pulls = (passed.factors.unsqueeze(2) * passed.around.vectors).sum(-1)
        weights = passed.nodes.vector_weights
        return pulls + (weights.unsqueeze(2) * passed.densities[1]).sum(-1)

    def velocity(
        self,
        times: Tensor,
        positions: Float[Tensor, "batch atoms dims"],
        learned: Float[Tensor, "batch atoms dims"],
    ) -> Float[Tensor, "batch atoms dims"]:
        """The velocity from its learned part."""
        skip = resting_rate(times)[:, None, None]
        return skip * remove_mean(positions) + self.faded(times, learned)

    def faded(
        self, times: Float[Tensor, "batch"], learned: Float[Tensor, "batch atoms dims"]
    ) -> Float[Tensor, "batch atoms dims"]:
        """The learned part without its mean, switched off where the data are at rest."""
        return self.fading(times)[:, None, None] * remove_mean(learned)

    def fading(self, times: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """c(t), the factor of the learned part."""
        noise = 1 - times
        return noise / torch.sqrt(noise.square() + self.noise_scale**2)
