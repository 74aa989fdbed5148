"""The arguments and the header that all benchmarks share."""

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Callable
from time import perf_counter

import torch

import boltztilt
from boltztilt.hardware import hardware


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the description as it was written."""


def arguments(description: str, n: int) -> argparse.ArgumentParser:
    """A parser with the number of structures, the seed and the number of threads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    parser.add_argument("-n", type=int, default=n, help="number of structures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of torch")
    return parser


def begin(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The parsed arguments, after printing under which conditions the figures arise."""
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"command   python {shlex.join(sys.argv)}")
    print(f"N, seed   {options.n}, {options.seed}")
    print(f"hardware  {hardware(torch.device('cpu'))}")
    print(
        f"versions  boltztilt {boltztilt.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
    return options


def median_seconds(function: Callable[[], object], n_repeats: int = 7) -> float:
    """Median wall time of a call, after one call to warm up."""
    function()
    return sorted(_seconds(function) for _ in range(n_repeats))[n_repeats // 2]


def _seconds(function: Callable[[], object]) -> float:
    start = perf_counter()
    function()
    return perf_counter() - start


def row(name: str, value: str, comment: str = "") -> None:
    """Prints one figure."""
    print(f"{name:<44} {value:>22}   {comment}".rstrip())
