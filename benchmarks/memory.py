"""Peak memory of sampling and of training updates, against the number of structures.

python benchmarks/memory.py
python benchmarks/memory.py --quick

Every row runs in a process of its own. Printed are the largest resident memory after importing the
package and what the work added to it at its peak. Sampling integrates a few structures at a time,
so its memory follows the batch and not N. Networks are untrained, with the settings of each
system's recipe; sampling makes a single solver step, because its memory does not depend on their
number. A likelihood update differentiates through all of its steps and does.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from conditions import arguments, begin
from measurement import Table, batch_size, droplets, peak_memory

from boltztilt.networks.build import build_network
from boltztilt.sampling.sampler import Sampler
from boltztilt.systems.system import System, load_system
from boltztilt.tilt.optimiser import FieldOptimiser
from boltztilt.tilt.recipe import Recipe
from boltztilt.tilt.regression import draw_bridge, draw_grid, likelihood_loss, matching_loss


def network(system: System) -> torch.nn.Module:
    """The untrained network of a system's recipe, on plain defaults where it has none."""
    return build_network(system.recipe.get("network", {"kind": "local_density"}), system)


def sampling(name: str, n: int, batch: int, density: bool, seed: int) -> None:
    """Draws `n` structures in batches, in one solver step."""
    system = load_system(name)
    torch.manual_seed(seed)
    sampler = Sampler(system, network(system), {})
    sampler.sample(n, seed, n_steps=1, batch_size=batch, with_density=density)


def matching_update(name: str, batch: int, seed: int) -> None:
    """One update of flow matching on `batch` points of paths."""
    system, recipe = load_system(name), Recipe(batch_size=batch)
    field = network(system)
    particles = droplets(batch // recipe.times_per_pair, system.n_atoms, seed)
    ones, species = torch.ones(len(particles)), torch.tensor(system.species)
    generator = torch.Generator().manual_seed(seed)
    mirror = system.potential.mirror_symmetric
    bridge = draw_bridge(particles, ones, system.base, species, mirror, recipe, generator, 0)
    optimiser = FieldOptimiser(field, recipe)
    matching_loss(field, bridge, system.base).backward()
    optimiser.step(recipe.learning_rate)


def likelihood_update(name: str, batch: int, n_steps: int, seed: int) -> None:
    """One update of the exact likelihood of `batch` structures."""
    system, recipe = load_system(name), Recipe()
    field = network(system)
    particles = droplets(batch, system.n_atoms, seed)
    generator = torch.Generator().manual_seed(seed)
    optimiser = FieldOptimiser(field, recipe)
    rates = field.velocity_and_divergence
    times = draw_grid(n_steps, recipe.likelihood_grid_power, generator)
    likelihood_loss(field, rates, particles, system.base, times).backward()
    optimiser.step(recipe.likelihood_rate)


def jobs(options: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Names of the rows, the functions that do their work, and its settings."""
    for name in options.systems:
        for density in (True,) if options.quick else (False, True):
            work = f"{name}: sampling {'with' if density else 'without'} density"
            for k in range(options.doublings + 1):
                settings = {"n": options.n * 2**k, "batch": options.batch, "density": density}
                yield work, "sampling", {"name": name, **settings}
            settings = {"n": options.n, "batch": options.batch // 2, "density": density}
            yield work, "sampling", {"name": name, **settings}
        if options.quick:
            continue
        for batch in (options.points // 4, options.points):
            yield f"{name}: flow matching", "matching_update", {"name": name, "batch": batch}
        n_steps = options.solver_steps
        particles = batch_size(options.particles, load_system(name).n_atoms)
        for batch in (max(1, particles // 2), particles):
            settings = {"name": name, "batch": batch, "n_steps": n_steps}
            yield f"{name}: likelihood, {n_steps} solver steps", "likelihood_update", settings


def main() -> None:
    parser = arguments(__doc__, n=64)
    parser.add_argument("--systems", nargs="+", default=["lj13", "lj55"])
    parser.add_argument("--doublings", type=int, default=2, help="of N, from -n on")
    parser.add_argument("--batch", type=int, default=32, help="structures sampled at a time")
    parser.add_argument(
        "--points", type=int, default=256, help="of an update of flow matching, a multiple of 16"
    )
    parser.add_argument("--particles", type=int, default=32, help="of 13 atoms, likelihood update")
    parser.add_argument("--solver-steps", type=int, default=8, help="of a likelihood update")
    parser.add_argument("--quick", action="store_true", help="sampling lj13 with density only")
    options = begin(parser)
    if options.quick:
        options.systems, options.doublings = ["lj13"], 1
    table = Table("work", "N", "batch", "imports MiB", "added MiB", first_width=36)
    for work, function, settings in jobs(options):
        memory = peak_memory("memory", function, options.threads, seed=options.seed, **settings)
        figures = (f"{memory.imports:.0f}", f"{memory.added:.0f}")
        table.add(work, str(settings.get("n", "")), str(settings["batch"]), *figures)


if __name__ == "__main__":
    main()
