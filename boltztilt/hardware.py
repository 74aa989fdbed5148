"""The hardware: what figures were measured on, and how much of it one batch may fill."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

PAIRS_AT_ONCE = 20_000
"""Pairs of atoms that a processor works on at once: more leave its caches and are slower."""

BYTES_PER_PAIR = 7_000
"""Memory that a pair fills in one evaluation of a field of the default width with divergence."""

MEMORY = 4e9
"""Bytes that all threads of a processor may fill; on a GPU it is half of what is free."""


def hardware(device: torch.device) -> str:
    """The processor and the threads in use, or the name of the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def n_workers(device: torch.device) -> int:
    """Threads that share the work: as many as torch has on a processor, one on a GPU."""
    return 1 if device.type == "cuda" else torch.get_num_threads()


def structures_at_once(n_atoms: int, device: torch.device, evaluations: int = 1) -> int:
    """How many structures a worker's field takes: one or more, whatever their number of atoms.

    `evaluations` is the number of evaluations of the field that autograd keeps at the same time.
    """
    n_pairs = max(n_atoms * (n_atoms - 1) // 2, 1)
    if device.type == "cuda":
        at_once = torch.cuda.mem_get_info(device)[0] / 2 / (BYTES_PER_PAIR * evaluations)
    else:
        at_once = min(PAIRS_AT_ONCE, MEMORY / n_workers(device) / (BYTES_PER_PAIR * evaluations))
    return max(1, int(at_once) // n_pairs)
