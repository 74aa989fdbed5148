"""The unrolled field: local-density layers that correct each other's guess of the end point.

A conditional mean E[x1 | x_t] answers noise as a solid answers a force, far beyond the neighbours
that one message reaches. Here each layer sees the atoms nearer to the end point that the layer
before has guessed, so that the answer travels on, as in an iterative solver whose steps are
learned.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from boltztilt.geometry import centring_matrix, remove_mean
from boltztilt.networks.atom_kinds import Pairing
from boltztilt.networks.local_density import LocalDensityField
from boltztilt.networks.local_density_jacobian import has_jacobian, learned_jacobian
from boltztilt.networks.time_features import TimeFeatures
from boltztilt.sampling.divergence import brute_force_divergence
from boltztilt.sampling.flow import Rates, Velocity, resting_rate
from boltztilt.sampling.multistep import VelocityAndJacobian

ACTING = (0.05, 0.08, 0.5, 0.7)
"""Noise over signal, (1-t)/t, at which the layers that do not act throughout begin to act, act in
full, begin to fade and are gone. In between a structure takes shape, which is hard to guess; before
that little is to be known, and afterwards each atom sees where it belongs."""


class UnrolledField(nn.Module):
    """Velocity of atoms from several local-density layers, each at the end point guessed so far.

    From b_0 = 0, each layer makes the step

        X_k = x + (1-t) b_k                     the end point x1 as guessed so far
        N_k = x - t b_k                         the start x0 that belongs to it
        Z_k = X_k + (1-t)² (N_k - X_k)          where the layer sees the atoms, x + t (1-t) b_k
        b_{k+1} = b_k + a_k(t) N_k + u_k(Z_k, t)

    where u_k is the learned part of a `LocalDensityField`, a_0 the `resting_rate` of the field
    between two equal Gaussians, and the other a_k are learned. Late, Z_k is the guess X_k with its
    bonds; early, when all guesses lie near the centre of mass, it keeps the noise that holds atoms
    apart, without which training is not stable. For the mean of x1 given x_t = t x1 + (1-t) x0, a
    layer is a step of gradient descent on U(X) + |x_t - t X|² / 2 (1-t)² with learned forces. A
    fresh field is the exact one at a = 0.

    The exact divergence is the trace of a product of the layers' Jacobians, which cost O(n³) work
    (`local_density_jacobian`). Fields of different atoms or with a cutoff take atoms * dims
    Jacobian-vector products instead.

    Args:
        n_layers: layers, at least 2; the cost grows in proportion.
        n_throughout: how many of them act at all times, the others only at those of `ACTING`;
            elsewhere these cost nothing. 0 for all layers.
        pairing, settings: of every layer, see `LocalDensityField`.
    """

    jacobian_fill = 12
    """How many times as much memory a pair fills as in the divergence of a single layer.

    Divergences are as dear in time: solvers make their steps in halves (`runge_kutta`).
    """

    def __init__(
        self,
        n_layers: int = 3,
        n_throughout: int = 0,
        pairing: Pairing | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if n_layers < 2:
            raise ValueError(
                f"an unrolled field needs n_layers of at least 2, got {n_layers}; a single layer "
                "is kind = 'local_density'"
            )
        if not 0 <= n_throughout <= n_layers:
            raise ValueError(
                f"an unrolled field needs n_throughout from 0, for all its layers, to n_layers = "
                f"{n_layers}, got {n_throughout}"
            )
        self.n_layers = n_layers
        self.n_throughout = n_throughout or n_layers
        layers = [LocalDensityField(pairing=pairing, **settings) for _ in range(n_layers)]
        self.cutoff = layers[0].cutoff
        n_hidden = len(layers[0].output)
        self.layers = nn.ModuleList(layers)
        self.time_features = TimeFeatures(n_hidden)
        self.pulls = nn.Linear(n_hidden, n_layers - 1)
        nn.init.zeros_(self.pulls.weight)
        nn.init.zeros_(self.pulls.bias)

    def forward(
        self,
        times: Float[Tensor, "batch"],
        positions: Float[Tensor, "batch atoms dims"],
        step: Callable[..., Tensor] | None = None,
    ) -> Float[Tensor, "batch atoms dims"]:
        """The velocity of each configuration at its time; `step` stands for `velocity_step`."""
        step = step or velocity_step
        centred = remove_mean(positions)
        velocity = torch.zeros_like(centred)
        for layer, pull, share in self.acting_layers(times):
            following = step(layer, times, pull, centred, velocity)
            velocity = following if share is None else torch.lerp(velocity, following, share)
        return velocity

    def velocity_and_divergence(
        self,
        times: Float[Tensor, "batch"],
        positions: Float[Tensor, "batch atoms dims"],
        step: Callable[..., tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Float[Tensor, "batch atoms dims"], Float[Tensor, "batch"]]:
        """The velocity and its exact divergence; `step` as in `velocity_and_jacobian`."""
        if not self.has_jacobian:
            return brute_force_divergence(self, times, positions)
        velocity, jacobian = self.velocity_and_jacobian(times, positions, step)
        return velocity, jacobian.diagonal(dim1=1, dim2=2).sum(-1)

    @property
    def divergence_by_products(self) -> bool:
        """Whether the divergence takes Jacobian-vector products, which cannot be compiled."""
        return not self.has_jacobian

    @property
    def has_jacobian(self) -> bool:
        """Whether `velocity_and_jacobian` knows the field: alike atoms without a cutoff."""
        layers: Any = self.layers
        return has_jacobian(layers[0])

    def velocity_and_jacobian(
        self,
        times: Float[Tensor, "batch"],
        positions: Float[Tensor, "batch atoms dims"],
        step: Callable[..., tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Float[Tensor, "batch atoms dims"], Float[Tensor, "batch coordinates coordinates"]]:
        """The velocity and its derivatives by all coordinates, where `has_jacobian` is true.

        `step` stands for `jacobian_step`.
        """
        step = step or jacobian_step
        centred = remove_mean(positions)
        velocity = torch.zeros_like(centred)
        n_coordinates = centred.shape[1:].numel()
        jacobian = centred.new_zeros(len(centred), n_coordinates, n_coordinates)
        for layer, pull, share in self.acting_layers(times):
            following, its_jacobian = step(layer, times, pull, centred, velocity, jacobian)
            if share is not None:
                following = torch.lerp(velocity, following, share)
                its_jacobian = torch.lerp(jacobian, its_jacobian, share)
            velocity, jacobian = following, its_jacobian
        return velocity, jacobian

    def acting_layers(
        self, times: Float[Tensor, "batch"]
    ) -> Iterator[tuple[LocalDensityField, Float[Tensor, "batch"], Tensor | None]]:
        """The layers that act at one of the times, each with a_k(t) and how far it acts.

        How far, `(batch, 1, 1)` from 0 to 1, is None for layers that act throughout.
        """
        learned = self.pulls(self.time_features(times))
        pulls = torch.cat([resting_rate(times).unsqueeze(1), learned], 1).unbind(1)
        n, layers, share = self.n_throughout, list[Any](self.layers), None
        if n < len(layers):
            share = how_far(times)[:, None, None]
            if not bool((share > 0).any()):
                layers = layers[:n]
        for number, (layer, pull) in enumerate(zip(layers, pulls, strict=False)):
            yield layer, pull, share if number >= n else None

    def with_steps(
        self, compile: Callable[[Callable], Any]
    ) -> tuple[Velocity, Rates, VelocityAndJacobian]:
        """`forward`, `velocity_and_divergence` and `velocity_and_jacobian` by compiled steps.

        `compile` is called for the step of a single layer, which is compiled once for all of them
        and so in a fraction of the time that the whole field takes.
        """
        step, step_with_jacobian = compile(velocity_step), compile(jacobian_step)
        return (
            partial(self, step=step),
            partial(self.velocity_and_divergence, step=step_with_jacobian),
            partial(self.velocity_and_jacobian, step=step_with_jacobian),
        )

    def started_from(self, shallower: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state of this field that does what a shallower one does.

        The other layers are copies of its last one, silenced: they see what it sees and say
        nothing yet. Fresh weights in their place disturb the field before they help.

        Args:
            shallower: the state of a `LocalDensityField`, which becomes the first layer, or that of
                an unrolled field with fewer layers, which become the first ones.
        """
        if "pulls.bias" not in shallower:
            shallower = {f"layers.0.{name}": tensor for name, tensor in shallower.items()}
        deeper = copy.deepcopy(self)
        state = deeper.state_dict()
        for name, tensor in shallower.items():
            if name.startswith("pulls."):
                tensor = torch.cat([tensor, state[name][len(tensor) :]])
            state[name] = tensor
        deeper.load_state_dict(state)
        layers: Any = deeper.layers
        last = max(int(name.split(".")[1]) for name in shallower if name.startswith("layers."))
        for layer in layers[last + 1 :]:
            layer.load_state_dict(layers[last].state_dict())
            layer.silence()
        return deeper.state_dict()


def velocity_step(
    layer: LocalDensityField,
    times: Float[Tensor, "batch"],
    pull: Float[Tensor, "batch"],
    centred: Float[Tensor, "batch atoms dims"],
    velocity: Float[Tensor, "batch atoms dims"],
) -> Float[Tensor, "batch atoms dims"]:
    """b_{k+1} from b_k at positions of zero mean."""
    start, seen = views(times, centred, velocity)
    return velocity + pull[:, None, None] * start + layer.correction(times, seen)


def jacobian_step(
    layer: LocalDensityField,
    times: Float[Tensor, "batch"],
    pull: Float[Tensor, "batch"],
    centred: Float[Tensor, "batch atoms dims"],
    velocity: Float[Tensor, "batch atoms dims"],
    jacobian: Float[Tensor, "batch coordinates coordinates"],
) -> tuple[Float[Tensor, "batch atoms dims"], Float[Tensor, "batch coordinates coordinates"]]:
    """b_{k+1} and its derivatives from those of b_k at positions of zero mean."""
    start, seen = views(times, centred, velocity)
    start_rate, seen_rate = views(times, centring_matrix(centred), jacobian)
    learned = learned_jacobian(layer, times, seen)
    fading, pull = (each[:, None, None] for each in (layer.fading(times), pull))
    change = (learned.jacobian - learned.jacobian.mean(1, keepdim=True)).flatten(1, 2)
    return (
        velocity + pull * start + layer.faded(times, learned.values),
        jacobian + pull * start_rate + fading * (change @ seen_rate),
    )


def how_far(times: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """How far layers act that do not act throughout: smooth from 0 to 1 and back, by `ACTING`."""
    ratio = (1 - times).log() - times.log()
    start, full, fading, gone = (math.log(each) for each in ACTING)
    rising = ((ratio - start) / (full - start)).clamp(0, 1)
    falling = ((gone - ratio) / (gone - fading)).clamp(0, 1)
    return rising.square() * (3 - 2 * rising) * falling.square() * (3 - 2 * falling)


def views(
    times: Float[Tensor, "batch"], positions: Tensor, velocity: Tensor
) -> tuple[Tensor, Tensor]:
    """N_k, and Z_k where the next layer sees the atoms; or their rates, given those of both."""
    wide = times[:, None, None]
    start = positions - wide * velocity
    return start, positions + wide * (1 - wide) * velocity
