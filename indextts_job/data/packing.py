"""How the samples of one step are cut into micro-batches: a pure function of (lengths, capacity, world size).

Samples lie end to end in a micro-batch, so a micro-batch is a bin of bounded length. Every rank computes the whole
plan and takes its bins; all ranks have the same number of bins, so that collectives in each of them match.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How one process cuts the steps."""

    capacity_tokens: int
    """Of a micro-batch."""
    rank: int = 0
    world_size: int = 1


Bin = tuple[int, ...]
"""Slots of the global batch that one micro-batch holds, ascending."""


def pack(lengths: Sequence[int], capacity_tokens: int, world_size: int = 1) -> list[Bin]:
    """Cut one global batch into micro-batches of at most `capacity_tokens`.

    Tries the smallest multiple of `world_size` bins that could hold the batch: longest sample first into the
    lightest bin, which balances them; when that overflows, first-fit-decreasing, which packs tighter; when that
    overflows too, `world_size` more bins. Ties go to the earlier slot and the earlier bin.

    Args:
        lengths: Tokens of each sample of the global batch.
        capacity_tokens: Tokens that one micro-batch may have.
        world_size: The number of bins is a multiple of it.

    Returns:
        Bins covering every slot exactly once. A bin may be empty when there are fewer samples than ranks.

    Raises:
        ValueError: A sample is longer than the capacity.
    """
    if lengths and max(lengths) > capacity_tokens:
        raise ValueError(f"a sample of {max(lengths)} tokens does not fit a micro-batch of {capacity_tokens} tokens")
    by_length = sorted(range(len(lengths)), key=lambda slot: (-lengths[slot], slot))
    smallest = max(1, -(-sum(lengths) // capacity_tokens))
    num_bins = -(-smallest // world_size) * world_size
    while True:
        for strategy in (_lightest_bin, _first_fit):
            bins = strategy(by_length, lengths, capacity_tokens, num_bins)
            if bins is not None:
                return [tuple(sorted(slots)) for slots in bins]
        num_bins += world_size


def bins_of_rank(bins: Sequence[Bin], rank: int, world_size: int) -> list[Bin]:
    """The micro-batches of one rank, in the order in which it computes them."""
    return list(bins[rank::world_size])


def _lightest_bin(slots: Sequence[int], lengths: Sequence[int], capacity: int, num_bins: int) -> list[list[int]] | None:
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    loads = [(0, index) for index in range(num_bins)]
    for slot in slots:
        load, index = loads[0]
        if load + lengths[slot] > capacity:
            return None
        bins[index].append(slot)
        heapq.heapreplace(loads, (load + lengths[slot], index))
    return bins


def _first_fit(slots: Sequence[int], lengths: Sequence[int], capacity: int, num_bins: int) -> list[list[int]] | None:
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    loads = [0] * num_bins
    for slot in slots:
        index = next((i for i, load in enumerate(loads) if load + lengths[slot] <= capacity), None)
        if index is None:
            return None
        bins[index].append(slot)
        loads[index] += lengths[slot]
    return bins
