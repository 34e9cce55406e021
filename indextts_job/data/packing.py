"""Cut the samples of one step into micro-batches: a pure function of (lengths, capacity, world size).

Samples are packed end to end, so a micro-batch is a bin of bounded length. Every rank computes all bins and takes its
own. All ranks have the same number of bins, because each micro-batch has collective operations.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The parameters by which one process cuts a step."""

    capacity_tokens: int
    """Largest number of tokens in a micro-batch."""
    rank: int = 0
    world_size: int = 1


Bin = tuple[int, ...]
"""Slots of the global batch in one micro-batch, ascending."""


def pack(lengths: Sequence[int], capacity_tokens: int, world_size: int = 1) -> list[Bin]:
    """Cut one global batch into micro-batches of at most `capacity_tokens`.

    It starts with the smallest multiple of `world_size` bins that could hold the batch. The longest sample goes first
    into the lightest bin, which balances the bins. When that overflows, first-fit-decreasing is tried, which packs more
    tightly, and after it the same with `world_size` more bins. Ties go to the earlier slot and the earlier bin.

    Args:
        lengths: Tokens of each sample of the global batch.
        capacity_tokens: Largest number of tokens in a micro-batch.
        world_size: Number of ranks; the number of bins is a multiple of it.

    Returns:
        Bins covering every slot exactly once. A bin may be empty when there are fewer samples than ranks.

    Raises:
        ValueError: A sample is longer than the capacity.
    """
    if lengths and max(lengths) > capacity_tokens:
        raise ValueError(f"a sample of {max(lengths)} tokens does not fit a micro-batch of {capacity_tokens} tokens")
    by_length = sorted(range(len(lengths)), key=lambda slot: (-lengths[slot], slot))
    smallest = max(1, _ceil_div(sum(lengths), capacity_tokens))
    num_bins = _ceil_div(smallest, world_size) * world_size
    # It ends: with one bin per sample everything fits.
    while True:
        for strategy in (_lightest_bin, _first_fit):
            bins = strategy(by_length, lengths, capacity_tokens, num_bins)
            if bins is not None:
                return [tuple(sorted(slots)) for slots in bins]
        num_bins += world_size


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)


def bins_of_rank(bins: Sequence[Bin], rank: int, world_size: int) -> list[Bin]:
    """The micro-batches of one rank, in the order in which it computes them."""
    return list(bins[rank::world_size])


def _lightest_bin(slots: Sequence[int], lengths: Sequence[int], capacity: int, num_bins: int) -> list[list[int]] | None:
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    loads = [(0, index) for index in range(num_bins)]  # sorted, so it is a heap already
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
