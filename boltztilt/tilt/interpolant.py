"""The linear interpolant I_t = (1 - t) x0 + t x1 and the times at which it is trained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Pairs(NamedTuple):
    """Coupled end points: x0 from the base, x1 from the tilted law, and weights of the pairs."""

    starts: Float[Tensor, "batch atoms dims"]
    ends: Float[Tensor, "batch atoms dims"]
    weights: Float[Tensor, "batch"]


class Bridge(NamedTuple):
    """Points on the interpolant: times, positions I_t, rates dI_t/dt, weights of the pairs.

    `factors` are those of the squared errors in a loss, chosen with the times.
    """

    times: Float[Tensor, "batch"]
    positions: Float[Tensor, "batch atoms dims"]
    rates: Float[Tensor, "batch atoms dims"]
    weights: Float[Tensor, "batch"]
    factors: Float[Tensor, "batch"]

    def in_order(self) -> Bridge:
        """The same points from the earliest to the latest."""
        order = self.times.argsort()
        return Bridge(*(values[order] for values in self))

    def split(self, size: int) -> Iterator[Bridge]:
        """The same points in parts of at most `size`."""
        parts = zip(*(values.split(size) for values in self), strict=True)
        return (Bridge(*part) for part in parts)


def draw_times(
    n_pairs: int, times_per_pair: int, smallest_noise: float, generator: torch.Generator
) -> Float[Tensor, "times"]:
    """Stratified times with 1 - t log-uniform on [smallest_noise, 1], `times_per_pair` blocks.

    Weighted by t, the squared error of the velocity at these times is proportional to the relative
    entropy ∫ t/(1-t) |error|² dt of the diffusions that fields define.
    """
    return 1 - torch.exp(math.log(smallest_noise) * stratified(n_pairs, times_per_pair, generator))


def stratified(n_pairs: int, per_pair: int, generator: torch.Generator) -> Float[Tensor, "numbers"]:
    """Numbers in [0, 1), `per_pair` blocks of one for every pair.

    Each block covers its own range, so that a pair is seen at all amounts of noise.
    """
    numbers = torch.empty(per_pair, n_pairs)
    for block in range(per_pair):
        order = torch.randperm(n_pairs, generator=generator)
        within = (order + torch.rand(n_pairs, generator=generator)) / n_pairs
        numbers[block] = (block + within) / per_pair
    return numbers.flatten()


def interpolate(
    pairs: Pairs, times: Float[Tensor, "batch"], factors: Float[Tensor, "batch"] | None = None
) -> Bridge:
    """The interpolant at the given times, whose number is a multiple of that of the pairs.

    The factors of squared errors are the times themselves where none are given.
    """
    factors = times if factors is None else factors
    n_blocks = len(times) // len(pairs.weights)
    starts, ends = pairs.starts.repeat(n_blocks, 1, 1), pairs.ends.repeat(n_blocks, 1, 1)
    wide = times[:, None, None]
    positions = (1 - wide) * starts + wide * ends
    return Bridge(times, positions, ends - starts, pairs.weights.repeat(n_blocks), factors)
