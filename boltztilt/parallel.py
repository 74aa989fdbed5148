"""Independent pieces of work on all processor cores: one thread each, in place of many for one.

The tensors of a field are small. Splitting each operation between threads costs more than it gains;
splitting a batch between threads that work alone nearly multiplies the speed by their number.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

Result = TypeVar("Result")


def n_workers(device: torch.device) -> int:
    """Threads that share the work: as many as torch has on a processor, one on a GPU."""
    return 1 if device.type == "cuda" else torch.get_num_threads()


def share_size(n: int, at_most: int, device: torch.device) -> int:
    """Size of the shares into which a batch of `n` is split: no more than `at_most`, one a worker.

    Code compiles once for each size that occurs, so the shares are equal where a divisor of `n` is
    at hand; otherwise the last is smaller.
    """
    at_most = max(1, min(at_most, -(-n // n_workers(device))))
    divisor = max(share for share in range(1, at_most + 1) if n % share == 0)
    return divisor if 2 * divisor >= at_most else at_most


def in_threads(
    tasks: Sequence[Callable[[], Result]], device: torch.device, first_alone: bool = False
) -> Iterator[Result]:
    """Results of the tasks, in their order, as they come.

    `first_alone` finishes the first and the last task, between which shapes may differ, before the
    others start: a function compiles on its first call, and only one thread may do that.
    """
    if n_workers(device) == 1:
        yield from (task() for task in tasks)
        return
    pool = _pool(n_workers(device))
    alone = [0, len(tasks) - 1] if first_alone else []
    early = {number: pool.submit(tasks[number]).result() for number in dict.fromkeys(alone)}
    futures = {
        number: pool.submit(task) for number, task in enumerate(tasks) if number not in early
    }
    try:
        for number in range(len(tasks)):
            yield early[number] if number in early else futures[number].result()
    finally:
        for future in futures.values():
            future.cancel()


@lru_cache(maxsize=1)
def _pool(n_threads: int) -> ThreadPoolExecutor:
    """Threads whose operations stay on them, while those of other threads are as they were."""
    pool = ThreadPoolExecutor(n_threads, "boltztilt")
    started = threading.Barrier(n_threads + 1)
    for _ in range(n_threads):
        pool.submit(_settle, started)
    started.wait()
    torch.set_num_threads(n_threads)  # also what new threads start with
    return pool


if hasattr(os, "register_at_fork"):  # threads do not survive a fork
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _settle(started: threading.Barrier) -> None:
    torch.get_num_threads()  # torch sets up a thread on first use, and then would forget the next
    torch.set_num_threads(1)
    started.wait()
