"""The unrolled field: local-density layers that correct each other's guess of the end point.

A conditional mean E[x1 | x_t] answers noise as a solid answers a force, far beyond the neighbours
that one message reaches. Here each layer sees the atoms nearer to the end point that the layer
before has guessed, so that the answer travels on, as in an iterative solver whose steps are
learned.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from boltztilt.geometry import remove_mean
from boltztilt.networks.atom_kinds import Pairing
from boltztilt.networks.local_density import LocalDensityField
from boltztilt.networks.local_density_jacobian import has_jacobian, learned_jacobian
from boltztilt.networks.time_features import TimeFeatures
from boltztilt.sampling.divergence import brute_force_divergence


class UnrolledField(nn.Module):
    """Velocity of atoms from several local-density layers, each at the end point guessed so far.

    With the first layer's velocity b_1(x, t), and for each further layer

        X_k = x + (1-t) b_k                     the end point x1 as guessed so far
        N_k = x - t b_k                         the start x0 that belongs to it
        Z_k = X_k + (1-t)² (N_k - X_k)          where the layer sees the atoms
        b_{k+1} = b_k + a_k(t) N_k + u_k(Z_k, t)

    where u_k is the learned part of a `LocalDensityField`. Late, Z_k is the guess X_k with its
    bonds; early, when all guesses lie near the centre of mass, it keeps the noise that holds atoms
    apart, without which training is not stable. For the mean of x1 given x_t = t x1 + (1-t) x0, a
    layer is a step of gradient descent on U(X) + |x_t - t X|² / 2 (1-t)² with learned forces. A
    fresh field is the exact one at a = 0.

    The exact divergence is the trace of a product of the layers' Jacobians, which cost O(n³) work
    (`local_density_jacobian`). Fields of different atoms or with a cutoff take atoms * dims
    Jacobian-vector products instead.

    Args:
        n_layers: layers, at least 2; the cost grows in proportion.
        pairing, settings: of every layer, see `LocalDensityField`.
    """

    jacobian_fill = 12
    """How many times as much memory a pair fills as in the divergence of a single layer.

    Divergences are as dear in time: solvers make their steps in halves (`runge_kutta`).
    """

    def __init__(self, n_layers: int = 3, pairing: Pairing | None = None, **settings: Any) -> None:
        super().__init__()
        if n_layers < 2:
            raise ValueError(
                f"an unrolled field needs n_layers of at least 2, got {n_layers}; a single layer "
                "is kind = 'local_density'"
            )
        layers = [LocalDensityField(pairing=pairing, **settings) for _ in range(n_layers)]
        n_hidden = len(layers[0].output)
        self.layers = nn.ModuleList(layers)
        self.time_features = TimeFeatures(n_hidden)
        self.pulls = nn.Linear(n_hidden, n_layers - 1)
        nn.init.zeros_(self.pulls.weight)
        nn.init.zeros_(self.pulls.bias)

    def forward(
        self, times: Float[Tensor, "batch"], positions: Float[Tensor, "batch atoms dims"]
    ) -> Float[Tensor, "batch atoms dims"]:
        """The velocity of each configuration at its time."""
        layers: Any = self.layers
        velocity = layers[0](times, positions)
        for layer, pull in zip(layers[1:], self.pulls_at(times), strict=True):
            start, seen = views(times, remove_mean(positions), velocity)
            velocity = velocity + pull * start + layer.correction(times, seen)
        return velocity

    def velocity_and_divergence(
        self, times: Float[Tensor, "batch"], positions: Float[Tensor, "batch atoms dims"]
    ) -> tuple[Float[Tensor, "batch atoms dims"], Float[Tensor, "batch"]]:
        """The velocity and its exact divergence."""
        if not self.has_jacobian:
            return brute_force_divergence(self, times, positions)
        velocity, jacobian = self.velocity_and_jacobian(times, positions)
        return velocity, jacobian.diagonal(dim1=1, dim2=2).sum(-1)

    @property
    def has_jacobian(self) -> bool:
        """Whether `velocity_and_jacobian` knows the field: alike atoms without a cutoff."""
        layers: Any = self.layers
        return has_jacobian(layers[0])

    def velocity_and_jacobian(
        self, times: Float[Tensor, "batch"], positions: Float[Tensor, "batch atoms dims"]
    ) -> tuple[Float[Tensor, "batch atoms dims"], Float[Tensor, "batch coordinates coordinates"]]:
        """The velocity and its derivatives by all coordinates, where `has_jacobian` is true."""
        layers: Any = self.layers
        centred = remove_mean(positions)
        centred_rate = projection(positions)
        skip, scale = (each[:, None, None] for each in layers[0].skip_and_scale(times))
        learned = learned_jacobian(layers[0], times, positions)
        velocity = layers[0].velocity(times, positions, learned.values)
        jacobian = skip[..., None] * centred_rate + scale[..., None] * _centred(learned.jacobian)
        for layer, pull in zip(layers[1:], self.pulls_at(times), strict=True):
            start, seen = views(times, centred, velocity)
            start_rate, seen_rate = views(times, centred_rate, jacobian)
            learned = learned_jacobian(layer, times, seen)
            scale = layer.skip_and_scale(times)[1][:, None, None]
            velocity = velocity + pull * start + scale * remove_mean(learned.values)
            change = torch.einsum(
                "biaj,bjk->biak", _centred(learned.jacobian), seen_rate.flatten(1, 2)
            )
            jacobian = jacobian + pull[..., None] * start_rate + scale[..., None] * change
        return velocity, jacobian.flatten(1, 2)

    def pulls_at(self, times: Float[Tensor, "batch"]) -> tuple[Float[Tensor, "batch 1 1"], ...]:
        """a_k(t) of all layers but the first."""
        return self.pulls(self.time_features(times))[:, :, None, None].unbind(1)

    def started_from(self, first: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state of this field with the weights of a `LocalDensityField` in its first layer."""
        placed = {f"layers.0.{name}": tensor for name, tensor in first.items()}
        return {**self.state_dict(), **placed}


def views(
    times: Float[Tensor, "batch"], positions: Tensor, velocity: Tensor
) -> tuple[Tensor, Tensor]:
    """N_k, and Z_k where the next layer sees the atoms; or their rates, given those of both."""
    wide = times.view(-1, *[1] * (velocity.dim() - 1))
    end, start = positions + (1 - wide) * velocity, positions - wide * velocity
    return start, torch.lerp(end, start, (1 - wide).square())


def projection(
    positions: Float[Tensor, "batch atoms dims"],
) -> Float[Tensor, "1 atoms dims coordinates"]:
    """Rate of positions without their mean."""
    n_atoms, n_dims = positions.shape[1:]
    identity = torch.eye(n_atoms * n_dims, dtype=positions.dtype, device=positions.device)
    return _centred(identity.view(1, n_atoms, n_dims, -1))


def _centred(rates: Float[Tensor, "batch atoms dims coordinates"]) -> Tensor:
    """Rates without those of the mean."""
    return rates - rates.mean(1, keepdim=True)
