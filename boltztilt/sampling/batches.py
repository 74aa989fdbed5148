"""Structures carried in batches, which threads work on side by side."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from boltztilt.hardware import fast_products
from boltztilt.parallel import in_threads, share_size
from boltztilt.sampling.flow import FlowResult

Carry = Callable[..., FlowResult]
"""Tensors of one batch to where it is carried, on the CPU."""

Progress = Callable[[int, int], None]
"""Called with the numbers of structures done and wanted."""


def in_batches(
    carry: Carry,
    inputs: tuple[Tensor, ...],
    size: int,
    padded: bool,
    device: torch.device,
    progress: Progress | None,
) -> tuple[Tensor, Tensor]:
    """End points and changes of log q of all batches, `padded` ones all of the same size."""
    n = len(inputs[0])
    size = min(size, n) if padded else share_size(n, size, device)
    task = partial(_padded, carry, size) if padded else carry
    parts = zip(*(values.split(size) for values in inputs), strict=True)
    results: list[FlowResult] = []
    done = 0
    with fast_products():
        for result in in_threads([partial(task, *part) for part in parts], device):
            results.append(result)
            done += len(result.positions)
            if progress is not None:
                progress(done, n)
    positions, change = zip(*results, strict=True)
    return torch.cat(positions), torch.cat(change)


def _padded(carry: Carry, size: int, *inputs: Tensor) -> FlowResult:
    """The same for a batch filled up to a size with copies of its first structure.

    Compiled code then sees one size of batch, for which it compiles once.
    """
    n = len(inputs[0])
    filled = (
        torch.cat([each, each[:1].repeat(size - n, *[1] * (each.dim() - 1))]) for each in inputs
    )
    result = carry(*filled)
    return FlowResult(result.positions[:n], result.log_density_change[:n])
