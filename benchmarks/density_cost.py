"""Price of the exact log-density of the local-density field, in plain forward passes.

python benchmarks/density_cost.py

One evaluation of velocity and exact divergence against one of the velocity alone, for clusters of
13 and 55 atoms; and against the brute-force trace of the same network's Jacobian at 13 atoms.
"""

from collections.abc import Callable
from functools import partial

import torch
from conditions import arguments, begin, median_seconds, row

from boltztilt.networks.local_density import LocalDensityField
from boltztilt.sampling.base import Gaussian
from boltztilt.sampling.divergence import brute_force_divergence

Point = tuple[torch.Tensor, torch.Tensor]


def point(n: int, n_atoms: int, seed: int) -> Point:
    """Times and positions at which the field is evaluated."""
    generator = torch.Generator().manual_seed(seed)
    positions = Gaussian(n_atoms).sample(n, generator)
    return torch.rand(n, generator=generator), positions


def seconds(function: Callable[..., object], *values: object, n_repeats: int = 7) -> float:
    """Median wall time of a call without gradients, as sampling makes it."""
    with torch.no_grad():
        return median_seconds(partial(function, *values), n_repeats)


def main() -> None:
    parser = arguments(__doc__, n=128)
    parser.add_argument("--width", type=int, default=64, help="hidden units of the network")
    options = begin(parser)
    torch.manual_seed(options.seed)
    field = LocalDensityField(n_hidden=options.width)
    for n_atoms in (13, 55):
        n = options.n if n_atoms == 13 else max(1, options.n // 8)
        times, positions = point(n, n_atoms, options.seed)
        plain = seconds(field, times, positions)
        exact = seconds(field.velocity_and_divergence, times, positions)
        row(f"n = {n_atoms}: forward pass", f"{1e3 * plain:.1f} ms", f"batch of {n}")
        row(f"n = {n_atoms}: velocity and exact divergence", f"{1e3 * exact:.1f} ms")
        row(f"n = {n_atoms}: log-density / forward pass", f"{exact / plain:.2f}")
        if n_atoms == 13:
            brute = seconds(brute_force_divergence, field, times, positions, n_repeats=3)
            row(f"n = {n_atoms}: brute force", f"{1e3 * brute:.1f} ms")
            row(f"n = {n_atoms}: brute force / exact divergence", f"{brute / exact:.1f}")


if __name__ == "__main__":
    main()
