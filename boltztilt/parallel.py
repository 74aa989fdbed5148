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

from boltztilt.hardware import keep_freed_memory, n_workers, structures_at_once

Result = TypeVar("Result")


def share_size(n: int, at_most: int, device: torch.device) -> int:
    """Size of the shares into which a batch of `n` is split: no more than `at_most`, one a worker.

    Code compiles once for each size that occurs, so the shares are equal where a divisor of `n` is
    at hand; otherwise the last is smaller.
    """
    at_most = max(1, min(at_most, -(-n // n_workers(device))))
    divisor = max(share for share in range(1, at_most + 1) if n % share == 0)
    return divisor if 2 * divisor >= at_most else at_most


def structures_per_share(n: int, n_atoms: int, device: torch.device, evaluations: int = 1) -> int:
    """Size of the shares into which `n` structures are split for a field, see `hardware`."""
    return share_size(n, structures_at_once(n_atoms, device, evaluations), device)


def in_threads(tasks: Sequence[Callable[[], Result]], device: torch.device) -> Iterator[Result]:
    """Results of the tasks, in their order, as they come."""
    if n_workers(device) == 1:
        yield from (task() for task in tasks)
        return
    pool = _pool(n_workers(device))
    futures = [pool.submit(_tasks().run, task) for task in tasks]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


def finish_alone() -> None:
    """Runs what is left of the calling task alone; does nothing outside of tasks.

    Returns once every other task has ended or waits here as well.
    """
    _tasks().finish_alone()


class _Tasks:
    """Who runs: tasks side by side, or one of them alone until it ends."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.running: set[int] = set()  # threads that are inside a task and do not wait
        self.waiting: set[int] = set()
        self.alone: int | None = None

    def run(self, task: Callable[[], Result]) -> Result:
        """The result of a task that starts when none wants to be alone."""
        thread = threading.get_ident()
        with self.changed:
            self.changed.wait_for(lambda: self.alone is None and not self.waiting)
            self.running.add(thread)
        try:
            return task()
        finally:
            with self.changed:
                self.running.remove(thread)
                self.alone = None if self.alone == thread else self.alone
                self.changed.notify_all()

    def finish_alone(self) -> None:
        thread = threading.get_ident()
        with self.changed:
            if thread not in self.running or self.alone == thread:
                return
            self.running.remove(thread)
            self.waiting.add(thread)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.alone is None and not self.running)
            self.waiting.remove(thread)
            self.running.add(thread)
            self.alone = thread


@lru_cache(maxsize=1)
def _tasks() -> _Tasks:
    return _Tasks()


@lru_cache(maxsize=1)
def _pool(n_threads: int) -> ThreadPoolExecutor:
    """Threads whose operations stay on them, while those of other threads are as they were."""
    keep_freed_memory()
    pool = ThreadPoolExecutor(n_threads, "boltztilt")
    started = threading.Barrier(n_threads + 1)
    for _ in range(n_threads):
        pool.submit(_settle, started)
    started.wait()
    torch.set_num_threads(n_threads)  # also what new threads start with
    return pool


if hasattr(os, "register_at_fork"):  # threads do not survive a fork
    os.register_at_fork(after_in_child=_pool.cache_clear)
    os.register_at_fork(after_in_child=_tasks.cache_clear)


def _settle(started: threading.Barrier) -> None:
    torch.get_num_threads()  # torch sets up a thread on first use, and then would forget the next
    torch.set_num_threads(1)
    started.wait()
