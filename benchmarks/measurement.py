"""What several benchmarks measure with: droplets, times side by side, memory, tables.

Times are CPU seconds of the process: with one thread the wall time of an idle machine, whatever
else runs beside the benchmark.
"""

import importlib
import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from boltztilt.geometry import remove_mean
from boltztilt.networks.local_density import LocalDensityField
from boltztilt.networks.unrolled import UnrolledField

Name = TypeVar("Name")

DENSITY = 1.1
"""Atoms per cubic r_min of a droplet: that of the Lennard-Jones liquid."""

SHORTEST_PAIR = 0.75
"""Smallest distance of two atoms of a droplet, in r_min."""


def untrained_field(
    n_layers: int, seed: int, cutoff: float | None = None
) -> LocalDensityField | UnrolledField:
    """A local-density field, unrolled where it has several layers, of the default width."""
    torch.manual_seed(seed)
    settings = {} if cutoff is None else {"cutoff": cutoff}
    field = LocalDensityField(**settings) if n_layers == 1 else UnrolledField(n_layers, **settings)
    return field.requires_grad_(False)


def droplets(n: int, n_atoms: int, seed: int) -> Tensor:
    """Liquid-like clusters: random points in a ball, none nearer than `SHORTEST_PAIR`."""
    generator = torch.Generator().manual_seed(seed)
    radius = (3 * n_atoms / (4 * math.pi * DENSITY)) ** (1 / 3)
    clusters = [_packed(n_atoms, radius, generator) for _ in range(n)]
    return remove_mean(torch.stack(clusters))


def _packed(n_atoms: int, radius: float, generator: torch.Generator) -> Tensor:
    """Points added one by one wherever there is room."""
    points = torch.empty(0, 3)
    while len(points) < n_atoms:
        trials = radius * (2 * torch.rand(64, 3, generator=generator) - 1)
        for trial in trials[trials.norm(dim=1) < radius]:
            if len(points) < n_atoms and bool(((points - trial).norm(dim=1) > SHORTEST_PAIR).all()):
                points = torch.cat([points, trial[None]])
    return points


def batch_size(n: int, n_atoms: int) -> int:
    """Structures with about as many pairs as `n` clusters of 13 atoms, at least one."""
    return max(1, round(n * 13**2 / n_atoms**2))


def side_by_side(
    functions: Mapping[Name, Callable[[], object]], n_turns: int, warm_up: bool = True
) -> dict[Name, list[float]]:
    """CPU seconds of several calls, made in turns, so that what disturbs one disturbs all."""
    for function in functions.values() if warm_up else ():
        function()
    seconds: dict[Name, list[float]] = {name: [] for name in functions}
    for _ in range(n_turns):
        for name, function in functions.items():
            start = process_time()
            function()
            seconds[name].append(process_time() - start)
    return seconds


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """The median ratio of times that were measured in the same turn."""
    return median(first / second for first, second in zip(numerators, denominators, strict=True))


class Memory(NamedTuple):
    """Largest resident memory of a process in MiB, after its imports and at its end."""

    imports: float
    peak: float

    @property
    def added(self) -> float:
        """What the work took on top of the imports."""
        return self.peak - self.imports


def peak_memory(module: str, function: str, threads: int, **arguments: Any) -> Memory:
    """The memory of calling a benchmark's function in a process of its own."""
    words = [module, function, str(threads), json.dumps(arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    finished = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), *words],
        env=environment,
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        raise RuntimeError(f"{module}.{function}({arguments}) failed:\n{finished.stderr}")
    return Memory(*json.loads(finished.stdout.splitlines()[-1]))


def largest_resident() -> float:
    """The largest resident memory this process has had, in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would count what the parent held when it started this process
        (line,) = [each for each in status.read_text().splitlines() if each.startswith("VmHWM")]
        return int(line.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


class Table:
    """Rows under headings, printed as they come."""

    def __init__(self, *headings: str, first_width: int = 36) -> None:
        self.widths = [first_width, *(max(len(heading), 9) for heading in headings[1:])]
        print()
        self.add(*headings)
        print("-" * (sum(self.widths) + 2 * len(self.widths) - 2))

    def add(self, *values: str) -> None:
        """Prints one row; the first column is text, the others are numbers."""
        first, *others = (
            value.rjust(width) for value, width in zip(values, self.widths, strict=True)
        )
        print("  ".join([first.lstrip().ljust(self.widths[0]), *others]).rstrip(), flush=True)


def _measure(module: str, function: str, threads: str, arguments: str) -> None:
    """What `peak_memory` runs in its process."""
    call = getattr(importlib.import_module(module), function)
    torch.set_num_threads(int(threads))
    imports = largest_resident()
    call(**json.loads(arguments))
    print(json.dumps([imports, largest_resident()]))


if __name__ == "__main__":
    _measure(*sys.argv[1:])
