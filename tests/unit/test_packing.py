"""The bins of a step: as few as the rule allows, each strategy where it is due, ties as documented."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indextts_job.data.packing import Bin, Cut, bins_of_rank, pack


def test_first_fit_fills_a_bin_to_its_last_token() -> None:
    """The lightest bin overflows with 9, 8 and a 3 to go; first fit gives 5 + 5 and 4 + 3 + 3."""
    assert pack([5, 5, 4, 3, 3], 10) == [(0, 1), (2, 3, 4)]


def test_the_lightest_bin_is_filled_to_its_last_token() -> None:
    assert pack([6, 5, 5, 4], 10) == [(0, 3), (1, 2)]


def test_ties_go_to_the_earlier_slot_and_the_earlier_bin() -> None:
    assert pack([4, 4, 4, 4], 8) == [(0, 2), (1, 3)]
    assert pack([1, 4, 4, 1], 5) == [(0, 1), (2, 3)]


def test_more_bins_come_by_the_number_of_ranks_when_both_overflow() -> None:
    assert pack([6, 6, 6], 10) == [(0,), (1,), (2,)]
    assert pack([6, 6, 6], 10, world_size=2) == [(0,), (1,), (2,), ()]
    assert pack([6, 6], 12, world_size=2) == [(0,), (1,)]


def test_there_is_a_bin_for_every_rank_even_of_nothing() -> None:
    assert pack([], 10) == [()]
    assert pack([], 10, world_size=3) == [(), (), ()]
    assert pack([7], 10, world_size=3) == [(0,), (), ()]


def test_a_sample_may_fill_a_micro_batch_and_no_more() -> None:
    assert pack([10, 10], 10) == [(0,), (1,)]
    with pytest.raises(ValueError, match=r"^a sample of 11 tokens does not fit a micro-batch of 10 tokens$"):
        pack([10, 11], 10)


def test_ranks_take_turns() -> None:
    bins: list[Bin] = [(0,), (1,), (2,), (3,)]
    assert [bins_of_rank(bins, rank, 2) for rank in range(2)] == [[(0,), (2,)], [(1,), (3,)]]
    assert Cut(capacity_tokens=5) == Cut(capacity_tokens=5, rank=0, world_size=1)


def by_the_rule(lengths: list[int], capacity: int, world_size: int) -> list[Bin]:
    """What the docstring of `pack` says, without a thought for speed."""
    slots = sorted(range(len(lengths)), key=lambda slot: (-lengths[slot], slot))

    def load(content: list[int]) -> int:
        return sum(lengths[slot] for slot in content)

    for num_bins in range(world_size, 10_000, world_size):
        if num_bins * capacity < sum(lengths):
            continue
        for first_fit in (False, True):
            bins: list[list[int]] = [[] for _ in range(num_bins)]
            for slot in slots:
                fitting = [content for content in bins if load(content) + lengths[slot] <= capacity]
                if not fitting:
                    break
                chosen = fitting[0] if first_fit else min(fitting, key=load)
                chosen.append(slot)
            else:
                return [tuple(sorted(content)) for content in bins]
    raise AssertionError(lengths)


@given(lengths=st.lists(st.integers(1, 12), max_size=14), spare=st.integers(0, 12), world_size=st.integers(1, 4))
def test_the_bins_are_those_of_the_rule(lengths: list[int], spare: int, world_size: int) -> None:
    capacity = max(lengths, default=1) + spare
    assert pack(lengths, capacity, world_size) == by_the_rule(lengths, capacity, world_size)
