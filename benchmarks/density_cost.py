"""Price of an exact log-density: the local-density field against the EGNN of the literature.

python benchmarks/density_cost.py
python benchmarks/density_cost.py --quick
python benchmarks/density_cost.py --unrolled 3
python benchmarks/density_cost.py --sampler lj55

The rate of change of a log-density is the velocity and its exact divergence. The local-density
field has the divergence in closed form; for the EGNN (5 layers of 128 hidden units unless said)
it takes D = 3n forward-mode products, all of which are made here: one after the other, and some
`--together` at a time through `torch.func.vmap`, which evaluates the network itself only once for
them. The same brute force on the field itself tells the formula from the architecture (not with
`--sampler`).

Times are CPU time per structure, medians over turns in which all variants run one after the other;
ratios are medians over turns too. Batches hold as many pairs as `-n` clusters of 13 atoms, those
of the products fewer. The networks are untrained and of different size: this is the price of an
evaluation, not of a sampler of given quality. With `--sampler` the field is that of a sampler, and
its price the mean over the steps that a structure takes, since layers need not act at all of them.
All three sizes take about six minutes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from conditions import arguments, begin
from measurement import (
    Table,
    batch_size,
    droplets,
    median_ratio,
    side_by_side,
    untrained_field,
)
from torch import Tensor

from boltztilt.networks.egnn import EGNN
from boltztilt.networks.local_density import LocalDensityField
from boltztilt.networks.unrolled import UnrolledField
from boltztilt.sampling.divergence import brute_force_divergence
from boltztilt.sampling.sampler import Sampler
from boltztilt.sampling.solvers import MULTISTEP_STEPS, starts_at_rest

FEW = 18
"""Clusters of 13 atoms with as many pairs as one of 55: the batch of brute force."""

EXACT = "field: velocity and divergence"
"""The row that the last column compares with."""


def velocity_and_divergence(
    field: EGNN, n_together: int, times: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """The exact divergence by products that share the evaluation of the network at the point."""
    n_coordinates = positions[0].numel()
    directions = torch.eye(n_coordinates).view(n_coordinates, 1, *positions.shape[1:])

    def product(direction: Tensor) -> tuple[Tensor, Tensor]:
        tangent = direction.expand_as(positions)
        value, change = torch.func.jvp(lambda x: field(times, x), (positions,), (tangent,))
        return value, (change * tangent).sum(dim=(1, 2))

    together = torch.func.vmap(product, out_dims=(None, 0))
    values, changes = zip(*map(together, directions.split(n_together)), strict=True)
    return values[0], torch.cat(changes).sum(0)


def evaluated_at(sampler: Sampler) -> list[float]:
    """The times at which the multistep solver evaluates the field of a sampler."""
    times = sampler.time_grid(MULTISTEP_STEPS, "multistep")[:-1].tolist()
    return times[1:] if starts_at_rest(sampler.metadata) else times


def in_turn(function: Callable, moments: Sequence[float] | None) -> Callable:
    """A function of times and positions at one moment after the other, each for a part of a batch.

    Without moments the function as it is.
    """
    if moments is None:
        return function

    def call(_: Tensor, positions: Tensor) -> list[Any]:
        parts = zip(moments, positions.tensor_split(len(moments)), strict=True)
        return [function(part.new_full((len(part),), moment), part) for moment, part in parts]

    return call


def times_per_structure(
    egnn: EGNN,
    field: LocalDensityField | UnrolledField,
    moments: Sequence[float] | None,
    n_atoms: int,
    n: int,
    n_together: int,
    n_turns: int,
    seed: int,
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds per structure of every variant in every turn, and the structures in its batch."""
    variants: dict[str, tuple[Callable, int]] = {
        "field: velocity": (in_turn(field, moments), n),
        EXACT: (in_turn(field.velocity_and_divergence, moments), n),
        "EGNN: velocity": (egnn, n),
        "EGNN: D products one by one": (partial(brute_force_divergence, egnn), FEW),
        f"EGNN: D products, {n_together} together": (
            partial(velocity_and_divergence, egnn, n_together),
            FEW,
        ),
    }
    if moments is None:  # by a sampler's steps they would take minutes
        variants["field: D products one by one"] = (partial(brute_force_divergence, field), FEW)
    batches = {name: batch_size(size, n_atoms) for name, (_, size) in variants.items()}
    if moments is not None:  # as many structures at each
        for name in ("field: velocity", EXACT):
            batches[name] = len(moments) * -(-batches[name] // len(moments))
    positions = droplets(max(batches.values()), n_atoms, seed)
    times = torch.rand(len(positions))
    calls = {
        name: partial(function, times[: batches[name]], positions[: batches[name]])
        for name, (function, _) in variants.items()
    }
    with torch.no_grad():
        seconds = side_by_side(calls, n_turns, warm_up=False)
    return {name: [t / batches[name] for t in seconds[name]] for name in calls}, batches


def print_comparison(title: str, seconds: dict[str, list[float]], batches: dict[str, int]) -> None:
    """One table for one size; the velocity is always that of the same network."""
    table = Table(title, "batch", "ms each", "/ velocity", "/ exact field")
    for name, values in seconds.items():
        velocity = seconds[f"{name.partition(':')[0]}: velocity"]
        table.add(
            name,
            str(batches[name]),
            f"{1e3 * median(values):.3g}",
            f"{median_ratio(values, velocity):.1f}",
            f"{median_ratio(values, seconds[EXACT]):.3g}",
        )


def main() -> None:
    parser = arguments(__doc__, n=128)
    parser.add_argument("--sizes", type=int, nargs="+", default=[13, 38, 55], help="atoms")
    parser.add_argument("--turns", type=int, default=3, help="turns of all variants")
    parser.add_argument("--width", type=int, default=128, help="hidden units of the EGNN")
    parser.add_argument("--layers", type=int, default=5, help="layers of the EGNN")
    parser.add_argument("--unrolled", type=int, default=1, help="layers of the field")
    parser.add_argument("--sampler", help="whose field in place of an untrained one, as lj55")
    parser.add_argument("--together", type=int, default=13, help="products at a time under vmap")
    parser.add_argument("--quick", action="store_true", help="13 atoms only")
    options = begin(parser)
    if options.sampler is None:
        field, moments = untrained_field(options.unrolled, options.seed), None
    else:
        sampler = Sampler.load(options.sampler)
        field, moments = sampler.field, evaluated_at(sampler)
    for n_atoms in (2, *([13] if options.quick else options.sizes)):
        torch.manual_seed(options.seed)
        egnn = EGNN([0] * n_atoms, options.width, options.layers)
        n, n_turns = (1, 1) if n_atoms == 2 else (options.n, options.turns)
        seconds, batches = times_per_structure(
            egnn, field, moments, n_atoms, n, options.together, n_turns, options.seed
        )
        if n_atoms > 2:  # the dimer only warms up
            print_comparison(f"n = {n_atoms}, D = {3 * n_atoms}", seconds, batches)


if __name__ == "__main__":
    main()
