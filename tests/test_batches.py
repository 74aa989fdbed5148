"""Structures in batches: sizes, order and padding."""

import torch

from boltztilt.sampling.batches import in_batches
from boltztilt.sampling.flow import FlowResult

CPU = torch.device("cpu")


def batches_of(n, size, padded):
    """The sizes of the batches in which `n` structures are doubled, and the results."""
    sizes = []

    def double(batch):
        sizes.append(len(batch))
        return FlowResult(2 * batch, batch[:, 0, 0].double())

    starts = torch.arange(float(n)).repeat(1, 1, 1).permute(2, 0, 1)
    ends, change = in_batches(double, (starts,), size, padded, CPU, None)
    torch.testing.assert_close(ends, 2 * starts)
    torch.testing.assert_close(change, starts[:, 0, 0].double())
    return sizes


def test_padded_batches_are_all_of_one_size():
    assert batches_of(10, 4, padded=True) == [4, 4, 4]


def test_few_structures_are_not_padded_to_a_large_batch():
    assert batches_of(10, 136_000, padded=True) == [10]


def test_batches_that_are_not_padded_share_the_structures():
    assert sum(batches_of(10, 4, padded=False)) == 10
