"""I1 for a weighted mixture: turns without gap or repetition, wherever one looks and whenever the weights change."""

from collections import Counter
from fractions import Fraction
from itertools import combinations_with_replacement, islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indextts_job.data.mixture import BLOCK, Change, Mixture, pattern, shares
from indextts_job.data.order import Order, mix64, permutation

FAR = 10**12
WEIGHTS = st.lists(st.integers(1, 10**9), min_size=1, max_size=6).map(tuple)
GOLDEN_POSITIONS = [
    *[(0, 130), (0, 1), (0, 60), (1, 46), (2, 15), (0, 561), (0, 310), (0, 330), (0, 973), (0, 221), (0, 964)],
    *[(0, 393), (1, 78), (2, 10), (0, 468), (0, 473)],
]


def mixture(sizes: tuple[int, ...], weights: tuple[int, ...], seed: int = 7, batch: int = 8, **named: int) -> Mixture:
    return Mixture(sizes=sizes, seed=seed, global_batch_samples=batch, changes=(Change(0, weights),), **named)


def block_by_hand(weights: tuple[int, ...]) -> list[int]:
    """The source of each slot, by the definition and without numpy."""
    exact = [Fraction(weight * BLOCK, sum(weights)) for weight in weights]
    count = [max(1, int(part)) for part in exact]
    largest_remainder = sorted(range(len(weights)), key=lambda s: (int(exact[s]) - exact[s], s))
    for source in islice(largest_remainder, max(0, BLOCK - sum(count))):
        count[source] += 1
    while sum(count) > BLOCK:
        count[min(range(len(count)), key=lambda s: (-count[s], s))] -= 1
    entries = [((2 * j + 1) * 10**12 // (2 * n), s) for s, n in enumerate(count) for j in range(n)]
    return [source for _, source in sorted(entries)]


class Walk:
    """The mixture position by position, with a counter for each source: the slow reference."""

    def __init__(self, sizes: tuple[int, ...], seed: int) -> None:
        self.sizes, self.seed = sizes, seed
        self.turns = [0] * len(sizes)

    def over(self, weights: tuple[int, ...], positions: int) -> list[tuple[int, int]]:
        slots = block_by_hand(weights)
        return [self.turn_of(slots[position % BLOCK]) for position in range(positions)]

    def turn_of(self, source: int) -> tuple[int, int]:
        epoch, place = divmod(self.turns[source], self.sizes[source])
        self.turns[source] += 1
        seed = mix64(self.seed + source * 0x9E3779B97F4A7C15) >> 1 if source else self.seed
        return source, int(permutation(seed, epoch, self.sizes[source])[place])


def named(order: Mixture, indices: "np.typing.NDArray[np.int64]") -> list[tuple[int, int]]:
    """Indices of the dataset as (source, index in it)."""
    starts = np.cumsum([0, *order.sizes])
    sources = np.searchsorted(starts, indices, side="right") - 1
    return [(int(s), int(i - starts[s])) for s, i in zip(sources, indices, strict=True)]


def test_the_mixture_has_its_golden_values() -> None:
    # A change here is another version of the order: it breaks the resume of every mixed run that exists.
    order = mixture((1000, 200, 100), (100, 15, 15), seed=2025, batch=16, epochs=3)
    assert shares((100, 15, 15)) == (769, 116, 115)
    assert named(order, order.samples_of(0)) == GOLDEN_POSITIONS
    assert named(order, order.between(10**6, 10**6 + 1)) == [(0, 519)]
    assert divmod(order.counts(10**6)[0], 1000)[0] == 769
    assert order.counts(1_000_005) == (769_003, 116_001, 115_001)
    assert order.total_samples == 3901
    assert order.total_steps == 244
    assert len(order.samples_of(243)) == 3901 - 243 * 16
    assert len(order.samples_of(244)) == 0


@given(weights=st.lists(st.integers(1, 10**12), min_size=1, max_size=40).map(tuple))
def test_shares_and_slots_follow_the_definition(weights: tuple[int, ...]) -> None:
    made = pattern(weights)
    assert sum(made.entries) == BLOCK
    assert min(made.entries) >= 1
    assert made.source.tolist() == block_by_hand(weights)
    assert made.entries == tuple(made.source.tolist().count(source) for source in range(len(weights)))


def test_weights_are_judged() -> None:
    assert shares((1, 0, 1)) == (500, 0, 500)
    assert shares((1,) * 1000) == (1,) * 1000
    assert shares((10**9, *[1] * 20)) == (980, *[1] * 20)
    for wrong in ((), (0, 0), (1, -1), (1,) * 1001):
        with pytest.raises(ValueError, match="expected 1 to 1000 positive"):
            shares(wrong)


@given(
    weights=WEIGHTS,
    first=st.one_of(st.integers(0, 5000), st.integers(FAR - 5000, FAR)),
    length=st.integers(0, 3000),
)
def test_turns_have_no_gap_and_no_repetition_from_any_start(weights: tuple[int, ...], first: int, length: int) -> None:
    order = mixture((10**13,) * len(weights), weights)
    before, after = order.counts(first), order.counts(first + length)
    slots = block_by_hand(weights)
    found = Counter(slots[position % BLOCK] for position in range(first, first + length))
    assert [b - a for a, b in zip(before, after, strict=True)] == [found[s] for s in range(len(weights))]
    assert sum(before) == first
    # The inverse: the next turn of each source stands at the next position where its turn is.
    for source, turn in enumerate(before):
        position = order.position(source, turn)
        assert slots[position % BLOCK] == source
        assert order.counts(position)[source] == turn
        assert order.counts(position + 1)[source] == turn + 1
        assert position >= first


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5).map(tuple),
    data=st.data(),
    seed=st.integers(0, 2**63 - 1),
)
def test_the_samples_are_those_of_a_walk(sizes: tuple[int, ...], data: st.DataObject, seed: int) -> None:
    weights = tuple(data.draw(st.integers(1, 1000)) for _ in sizes)
    order = mixture(sizes, weights, seed, batch=64)
    walked = Walk(sizes, seed).over(weights, 64 * 20)
    stream = [sample for step in range(20) for sample in named(order, order.samples_of(step))]
    assert stream == walked
    # A finished epoch holds each sample once, and none comes twice before its end.
    for source, size in enumerate(sizes):
        own = [index for which, index in stream if which == source]
        for start in range(0, len(own), size):
            epoch = own[start : start + size]
            assert len(set(epoch)) == len(epoch)


@given(weights=WEIGHTS, first=st.integers(0, FAR), length=st.integers(1, 64))
def test_every_part_of_the_stream_has_the_shares(weights: tuple[int, ...], first: int, length: int) -> None:
    order = mixture((10**13,) * len(weights), weights)
    counts = zip(shares(weights), order.counts(first), order.counts(first + length), strict=True)
    for entries, before, after in counts:
        # Inside a block each source is half an entry off at most, and all of them together make the position.
        bound = 0.5 + entries / BLOCK * (len(weights) - 2) / 2 + 1e-6
        assert abs(before - Fraction(first * entries, BLOCK)) <= bound
        assert abs(after - before - Fraction(length * entries, BLOCK)) <= 2 * bound


@given(weights=WEIGHTS, batch=st.integers(1, 50), step=st.integers(0, 10**9))
def test_the_stream_does_not_know_the_global_batch(weights: tuple[int, ...], batch: int, step: int) -> None:
    sizes = tuple(range(3, 3 + len(weights)))
    whole = mixture(sizes, weights, batch=2 * batch).samples_of(step)
    half = mixture(sizes, weights, batch=batch)
    assert whole.tolist() == [*half.samples_of(2 * step), *half.samples_of(2 * step + 1)]


@given(size=st.integers(1, 60), weight=st.integers(1, 10**9), batch=st.integers(1, 70), seed=st.integers(0, 2**63 - 1))
def test_one_source_is_version_1_bit_for_bit(size: int, weight: int, batch: int, seed: int) -> None:
    mixed = mixture((size,), (weight,), seed, batch, epochs=3)
    order = Order(num_samples=size, seed=seed, global_batch_samples=batch, total_samples=3 * size)
    assert (mixed.total_samples, mixed.total_steps) == (3 * size, order.total_steps)
    for step in [*range(order.total_steps), FAR // batch]:
        assert mixed.samples_of(step).tolist() == order.samples_of(step).tolist()
        assert mixed.epoch_of(step) == order.epoch_of(step)
        assert mixed.epochs_after(step * batch) == order.epochs_after(step * batch)


@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=4).map(tuple),
    data=st.data(),
    epochs=st.integers(1, 3),
)
def test_the_end_is_the_last_sample_of_the_first_source(
    sizes: tuple[int, ...], data: st.DataObject, epochs: int
) -> None:
    weights = tuple(data.draw(st.integers(1, 1000)) for _ in sizes)
    order = mixture(sizes, weights, epochs=epochs)
    own = [index for source, index in named(order, order.between(0, order.total_samples)) if source == 0]
    assert Counter(own) == dict.fromkeys(range(sizes[0]), epochs)
    assert order.counts(order.total_samples - 1)[0] == epochs * sizes[0] - 1


@given(
    sizes=st.lists(st.integers(1, 30), min_size=3, max_size=3).map(tuple),
    stretches=st.lists(
        st.tuples(st.integers(1, 300), st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9))),
        min_size=1,
        max_size=5,
    ),
    batch=st.integers(1, 9),
)
def test_weights_change_without_gap_or_repetition(
    sizes: tuple[int, ...], stretches: list[tuple[int, tuple[int, int, int]]], batch: int
) -> None:
    steps = [0, *np.cumsum([length for length, _ in stretches]).tolist()]
    changes = tuple(Change(step, weights) for step, (_, weights) in zip(steps, stretches, strict=False))
    order = Mixture(sizes=sizes, seed=5, global_batch_samples=batch, changes=changes)
    walk = Walk(sizes, 5)
    walked = [
        walk.turn_of(taking_part(weights)[slot])
        for length, weights in stretches
        for slot in islice_of(weights, length * batch)
    ]
    stream = np.concatenate([order.samples_of(step) for step in range(steps[-1])])
    assert named(order, stream) == walked
    assert named(order, order.between(0, len(walked))) == walked
    assert list(order.counts(len(walked))) == walk.turns
    turns = [0, 0, 0]
    for position, (source, _) in enumerate(walked):
        assert order.position(source, turns[source]) == position
        turns[source] += 1


def taking_part(weights: tuple[int, ...]) -> list[int]:
    return [source for source, weight in enumerate(weights) if weight]


def islice_of(weights: tuple[int, ...], positions: int) -> list[int]:
    """Slots of a block that only the sources with a weight share, repeated."""
    slots = block_by_hand(tuple(weight for weight in weights if weight))
    return [slots[position % BLOCK] for position in range(positions)]


def test_a_source_that_comes_later_begins_with_its_first_turn() -> None:
    alone = Order(num_samples=50, seed=3, global_batch_samples=4)
    order = Mixture(sizes=(50, 10), seed=3, global_batch_samples=4, changes=(Change(0, (1, 0)), Change(100, (85, 15))))
    assert all(order.samples_of(step).tolist() == alone.samples_of(step).tolist() for step in range(100))
    assert order.counts(400) == (400, 0)
    later = named(order, order.between(400, 700))
    replay = [index for source, index in later if source == 1]
    assert len(replay) == 45
    assert sorted(replay[:10]) == list(range(10))
    # The first source goes on in the middle of its epoch.
    assert [index for source, index in later if source == 0][:20] == alone.samples_of(100).tolist() + [
        int(i) for step in range(101, 105) for i in alone.samples_of(step)
    ]


def test_a_source_that_has_left_has_no_further_turns() -> None:
    order = Mixture(sizes=(5, 5), seed=0, global_batch_samples=10, changes=(Change(0, (1, 1)), Change(10, (1, 0))))
    assert order.position(1, 49) < 100
    with pytest.raises(LookupError, match="source 1 has no turn 50"):
        order.position(1, 50)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ((), r"change at the steps \[\]"),
        ((Change(3, (1, 1)),), r"change at the steps \[3\]"),
        ((Change(0, (1, 1)), Change(5, (1, 1)), Change(5, (1, 1))), r"change at the steps \[0, 5, 5\]"),
        ((Change(0, (1,)),), "2 sources"),
        ((Change(0, (0, 1)),), "the first source needs a weight"),
    ],
)
def test_an_impossible_mixture_is_refused(changes: tuple[Change, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(sizes=(5, 5), seed=0, global_batch_samples=1, changes=changes)


@pytest.mark.parametrize("sizes", [(1000, 100), (100, 1000), (100, 100)])
def test_a_share_of_15_percent_does_not_depend_on_the_sizes(sizes: tuple[int, int]) -> None:
    """The public recipe draws records with their manifest's weight: there the same 0.15 is 60 % or 1.5 % of it."""
    order = mixture(sizes, (85, 15))
    assert all(abs(order.counts(position)[1] - 0.15 * position) <= 2 for position in range(0, 20_000, 7))


def test_many_sources_of_one_thousandth() -> None:
    for count, extra in combinations_with_replacement((3, 17, 300), 2):
        weights = (10**9, *[1] * count, *[10**6] * extra)
        assert sorted(set(pattern(weights).source.tolist())) == list(range(len(weights)))
