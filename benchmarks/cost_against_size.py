"""How time and memory of the local-density field grow with the number of atoms.

python benchmarks/cost_against_size.py
python benchmarks/cost_against_size.py --quick
python benchmarks/cost_against_size.py --unrolled 3

Velocity alone, and velocity with exact divergence, on liquid-like droplets of n atoms: with edges
between all pairs and, where the field knows a cutoff, with edges up to `--cutoff` r_min. Times are
CPU time per structure, medians over turns of all variants; the exponent p of t ~ n^p is a least
squares fit to log t against log n, with its standard error. Batches hold as many pairs as `-n`
clusters of 13 atoms, so that small clusters do not pay for the overhead of small tensors; where
that is less than one structure the batch is one. An unrolled field has no cutoff here: its
divergence would take 3n products.

Memory is what a process of its own reaches at its peak, less what its imports took.
"""

import math
from functools import partial
from statistics import median

import torch
from conditions import arguments, begin
from measurement import (
    Table,
    batch_size,
    droplets,
    peak_memory,
    side_by_side,
    untrained_field,
)

from boltztilt.sampling.estimate import Estimate

SIZES = (13, 38, 55, 147)
LARGE = 309


def evaluate(
    n: int, n_atoms: int, n_layers: int, divergence: bool, cutoff: float | None, seed: int
) -> None:
    """One evaluation, for `peak_memory`."""
    field = untrained_field(n_layers, seed, cutoff)
    function = field.velocity_and_divergence if divergence else field
    function(torch.full((n,), 0.5), droplets(n, n_atoms, seed))


def milliseconds(
    sizes: list[int],
    cutoffs: list[float | None],
    n_layers: int,
    n: int,
    n_turns: int,
    seed: int,
) -> dict[tuple[bool, float | None], list[float]]:
    """CPU time per structure of each variant (with divergence or not, cutoff), by size."""
    variants: dict[tuple[bool, float | None], list[float]] = {
        (divergence, cutoff): [] for cutoff in cutoffs for divergence in (False, True)
    }
    fields = {cutoff: untrained_field(n_layers, seed, cutoff) for cutoff in cutoffs}
    for n_atoms in sizes:
        batch = batch_size(n, n_atoms)
        point = (torch.full((batch,), 0.5), droplets(batch, n_atoms, seed))
        calls = {
            (divergence, cutoff): partial(
                fields[cutoff].velocity_and_divergence if divergence else fields[cutoff], *point
            )
            for divergence, cutoff in variants
        }
        for variant, seconds in side_by_side(calls, n_turns).items():
            variants[variant].append(1e3 * median(seconds) / batch)
    return variants


def exponent(sizes: list[int], times: list[float]) -> Estimate:
    """p of t ~ n^p with its standard error, by least squares on logarithms."""
    x = torch.tensor(sizes, dtype=torch.float64).log()
    y = torch.tensor(times, dtype=torch.float64).log()
    x, y = x - x.mean(), y - y.mean()
    slope = (x @ y) / (x @ x)
    if len(sizes) < 3:
        return Estimate(float(slope), math.nan)
    residual = (y - slope * x).square().sum() / (len(sizes) - 2)
    return Estimate(float(slope), float((residual / (x @ x)).sqrt()))


def name(divergence: bool, cutoff: float | None) -> str:
    """What a row is called."""
    edges = "all pairs" if cutoff is None else f"cutoff {cutoff:g}"
    return f"{edges}, {'velocity and divergence' if divergence else 'velocity'}"


def print_times(
    sizes: list[int],
    cutoffs: list[float | None],
    variants: dict[tuple[bool, float | None], list[float]],
) -> None:
    """CPU time of all variants with their exponents, and the price of the divergence."""
    columns = [f"n = {size}" for size in sizes]
    table = Table("CPU ms per structure", *columns, "p in t ~ n^p", first_width=40)
    for variant, times in variants.items():
        table.add(name(*variant), *(f"{t:.3g}" for t in times), str(exponent(sizes, times)))
    for cutoff in cutoffs:
        both = zip(variants[True, cutoff], variants[False, cutoff], strict=True)
        edges = name(False, cutoff).partition(",")[0]
        table.add(f"{edges}, ratio of both", *(f"{dear / cheap:.2f}" for dear, cheap in both), "")


def print_memory(
    sizes: list[int],
    cutoffs: list[float | None],
    n_layers: int,
    n: int,
    threads: int,
    seed: int,
) -> None:
    """Memory of all variants, each size in a process of its own."""
    batches = {size: batch_size(n, size) for size in sizes}
    columns = [f"n = {size}" for size in sizes]
    table = Table("peak memory in MiB, imports deducted", *columns, "imports", first_width=40)
    table.add("structures in the batch", *map(str, batches.values()), "")
    for cutoff in cutoffs:
        for divergence in (False, True):
            settings = {"divergence": divergence, "cutoff": cutoff, "seed": seed}
            settings["n_layers"] = n_layers
            found = [
                peak_memory("cost_against_size", "evaluate", threads, n=n, n_atoms=size, **settings)
                for size, n in batches.items()
            ]
            added = [f"{each.added:.0f}" for each in found]
            table.add(name(divergence, cutoff), *added, f"{found[0].imports:.0f}")


def main() -> None:
    parser = arguments(__doc__, n=128)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="atoms")
    parser.add_argument("--large", action="store_true", help=f"measure {LARGE} atoms as well")
    parser.add_argument("--cutoff", type=float, default=2.5, help="longest edge in r_min")
    parser.add_argument("--unrolled", type=int, default=1, help="layers of the field")
    parser.add_argument("--turns", type=int, default=5, help="turns of all variants")
    parser.add_argument("--no-memory", action="store_true", help="times only")
    parser.add_argument("--quick", action="store_true", help="13 to 55 atoms, times only")
    options = begin(parser)
    sizes = [*options.sizes, *([LARGE] if options.large else [])]
    if options.quick:
        sizes = list(SIZES[:3])
    cutoffs = [None, options.cutoff] if options.unrolled == 1 else [None]
    n_layers, seed = options.unrolled, options.seed
    variants = milliseconds(sizes, cutoffs, n_layers, options.n, options.turns, seed)
    print_times(sizes, cutoffs, variants)
    if not (options.no_memory or options.quick):
        print_memory(sizes, cutoffs, n_layers, options.n, options.threads, seed)


if __name__ == "__main__":
    main()
