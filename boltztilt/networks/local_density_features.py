"""What the parts of the local-density field hand to each other."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from boltztilt.networks.pair_layout import PairLayout

SOFTENING = 0.1
"""Distance, in units of the core, below which angular features fade."""

DENSITY_SCALE = 0.3
"""Scale of a density: about one over the square root of a dozen neighbours."""


class PairGeometry(NamedTuple):
    """Vectors x_i - x_j of pairs i < j, their lengths and softened harmonics by degree.

    With a cutoff also the switch that fades a pair out and its derivative, zero for padding.
    """

    vectors: Float[Tensor, "batch pairs 3"]
    distances: Float[Tensor, "batch pairs"]
    softened: Float[Tensor, "batch pairs"]
    harmonics: list[Tensor]
    switch: tuple[Float[Tensor, "batch pairs 1"], Float[Tensor, "batch pairs 1"]] | None = None


class Surroundings(NamedTuple):
    """Vectors centre - other of all edges and their harmonics by degree, zero for padding.

    Edges that are padding, as the diagonal of all pairs is, count nothing for that reason. They are
    the last axis, along which processors work on many numbers at once.
    """

    vectors: Float[Tensor, "batch atoms 3 edges"]
    harmonics: list[Tensor]

    @classmethod
    def of(cls, geometry: PairGeometry, layout: PairLayout) -> Surroundings:
        """The geometry of all edges as seen from every atom."""

        def seen(values: Tensor, odd: bool) -> Tensor:
            return layout.edges(values, odd).transpose(-1, -2).contiguous()

        harmonics = [seen(each, degree % 2 == 1) for degree, each in enumerate(geometry.harmonics)]
        return cls(seen(geometry.vectors, True), harmonics)

    def outer(self, degree: int) -> Float[Tensor, "batch atoms axes_orders edges"]:
        """Products r_a Y_m, axes and orders in one index."""
        return (self.vectors.unsqueeze(3) * self.harmonics[degree].unsqueeze(2)).flatten(2, 3)


class NodeFeatures(NamedTuple):
    """What an atom sends to its edges: an embedding, gates of the output, weights of vectors."""

    pre_activation: Float[Tensor, "batch atoms hidden"]
    embedding: Float[Tensor, "batch atoms hidden"]
    gates: Float[Tensor, "batch atoms hidden"]
    vector_weights: Float[Tensor, "batch atoms channels"]


class EdgeActivations(NamedTuple):
    """Pre-activations of the two layers of the edge perceptron and its output."""

    first: Float[Tensor, "batch pairs hidden"]
    second: Float[Tensor, "batch pairs hidden"]
    output: Float[Tensor, "batch pairs hidden"]


class TimeModulation(NamedTuple):
    """Scales and shifts of hidden layers, and gates of the output, set by the time."""

    node_scale: Float[Tensor, "batch 1 hidden"]
    node_shift: Float[Tensor, "batch 1 hidden"]
    edge_scale: Float[Tensor, "batch 1 hidden"]
    edge_shift: Float[Tensor, "batch 1 hidden"]
    gates: Float[Tensor, "batch 1 hidden"]


class ForwardPass(NamedTuple):
    """All that the field makes of times and positions on its way to the velocity."""

    layout: PairLayout
    geometry: PairGeometry
    around: Surroundings
    radial: Float[Tensor, "batch pairs densities"]
    densities: list[Tensor]
    modulation: TimeModulation
    nodes: NodeFeatures
    projections: Float[Tensor, "batch pairs densities"]
    edges: EdgeActivations
    gates: Float[Tensor, "batch atoms hidden"]
    factors: Float[Tensor, "batch atoms edges"]


def switched(values: Float[Tensor, "batch pairs features"], geometry: PairGeometry) -> Tensor:
    """Values that fade out with the distance of their pair, if there is a cutoff."""
    return values if geometry.switch is None else values * geometry.switch[0]
