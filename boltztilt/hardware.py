"""The hardware: what figures were measured on, and how much of it one batch may fill."""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

PAIRS_AT_ONCE = 20_000
"""Pairs of atoms that a processor works on at once: more leave its caches and are slower."""

BYTES_PER_PAIR = 7_000
"""Memory that a pair fills in one evaluation of a field of the default width with divergence."""

MALLOC_PARAMETERS = {-1: 2**30, -3: 2**25}
"""Bytes of free memory above which it is returned (M_TRIM_THRESHOLD of malloc.h), and of a tensor
above which it is returned at once (M_MMAP_THRESHOLD, 32 MiB at most)."""

MEMORY = 4e9
"""Bytes that all threads of a processor may fill; on a GPU it is half of what is free."""


def hardware(device: torch.device) -> str:
    """The processor and the threads in use, or the name of the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = _processor("model name") or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def _processor(what: str) -> str:
    """An entry of /proc/cpuinfo, empty where there is none."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    entries = [line.partition(":")[2].strip() for line in lines if line.startswith(what)]
    return entries[0] if entries else ""


_choosing_products = threading.Lock()
_precision_before: list[str] = []
"""What the setting was when each thread began that takes its products from oneDNN: the first entry
that of before, the others oneDNN's."""


@contextmanager
def fast_products() -> Iterator[None]:
    """Products of single-precision matrices by oneDNN where it is faster than torch's choice, MKL.

    That is on AMD processors, by a factor of 2 to 4. torch takes oneDNN if less precise products
    are allowed; they are allowed only where oneDNN does not make use of that. Only for evaluations
    of fields: meanwhile `torch.get_float32_matmul_precision` cannot tell what is allowed, and
    raises; `full_precision_products` tells.
    """
    with _onednn() if _onednn_is_faster() else nullcontext():
        yield


def full_precision_products() -> bool:
    """Whether products of single-precision matrices are as exact as single precision allows."""
    with _choosing_products:
        if _precision_before:
            return _precision_before[0] not in ("bf16", "tf32")
        return torch.get_float32_matmul_precision() == "highest"


@contextmanager
def _onednn() -> Iterator[None]:
    """Products by oneDNN, in a torch that has the choice, until the last thread is done."""
    settings: Any = getattr(torch.backends.mkldnn, "matmul", None)
    with _choosing_products:
        _precision_before.append(settings.fp32_precision)
        settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        with _choosing_products:
            settings.fp32_precision = _precision_before.pop()


@lru_cache(maxsize=1)
def _onednn_is_faster() -> bool:
    """Whether to take oneDNN: for an AMD processor on which its products are as exact as MKL's."""
    settings: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if _processor("vendor_id") != "AuthenticAMD" or not hasattr(settings, "fp32_precision"):
        return False
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(64, 96, 96, generator=generator) for _ in range(2))
    with _onednn():
        products = (left @ right, left.flatten(0, 1) @ right[0])
    left, right = left.double(), right.double()
    exact = (left @ right, left.flatten(0, 1) @ right[0])
    errors = [float((one - other).abs().max()) for one, other in zip(products, exact, strict=True)]
    return max(errors) < 1e-3  # rounded to bfloat16 it is 0.1


@contextmanager
def one_thread() -> Iterator[None]:
    """Operations on the processor by the calling thread alone.

    For factorisations of batches of matrices: with several threads, torch calls MKL's in a way that
    fails without an error for matrices of 150 rows and more
    (https://github.com/pytorch/pytorch/issues/142815, still so in torch 2.13). A thread that is
    alone already is left so without a call, which would tell new threads to start alone, too.
    """
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Freed memory stays with the process, where it is at hand for the next evaluation.

    The C library of Linux may return it at once, and asking for it again took 2 to 7 % of the time
    that LJ-55 was sampled in. Elsewhere this does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    for parameter, n_bytes in MALLOC_PARAMETERS.items():
        library.mallopt(parameter, n_bytes)


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
