"""The samples of step k of a weighted mixture: a pure function of (sizes, weights, seed, global batch size, k).

A position is the only variable, as in `order.py`. Every block of 1,000 positions has the same pattern, in which each
source has as many entries as its weight says, evenly spread. The entries of a source count its turns, and turn u of
source s is the place u of that source's own endless stream of keyed permutations. So a source's share of the stream
does not depend on its size, none of its samples comes twice before its epoch ends, and every step has its replay.

Weights may change at a step. The turns of each source go on where they were, so nothing is repeated or left out.

Rounding cumulated shares (the count of a source as a difference of two floors) looks simpler, and is wrong: with three
sources or more the count of one can fall.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from indextts_job.data.order import GOLDEN, mix64, stream

BLOCK = 1000
"""Positions of a pattern: the unit of a share is a thousandth."""
_KEY = 10**12
"""Resolution of the places inside a block."""


@dataclass(frozen=True, slots=True)
class Change:
    """The weights of all sources from a step on."""

    step: int
    weights: tuple[int, ...]
    """Whole numbers in any unit, one for each source; 0 = the source has no part."""


def _demand_weights(weights: Sequence[int]) -> None:
    if min(weights, default=0) < 0 or not 0 < sum(map(bool, weights)) <= BLOCK:
        raise ValueError(f"weights {list(weights)}: expected 1 to {BLOCK} positive ones, and none that is negative")


def shares(weights: Sequence[int]) -> tuple[int, ...]:
    """Entries of each source in a block; together `BLOCK`, at least one for each source with a weight.

    Args:
        weights: Whole numbers in any unit, not all of them 0.

    Raises:
        ValueError: A weight is negative, none is positive, or there are more sources than entries.
    """
    _demand_weights(weights)
    total = sum(weights)
    taking_part = [source for source, weight in enumerate(weights) if weight]
    entries = [max(1, weight * BLOCK // total) if weight else 0 for weight in weights]
    missing = BLOCK - sum(entries)
    # Ties go to the source that was named first, as `sorted` and `max` keep the order of equals.
    for source in sorted(taking_part, key=lambda source: -(weights[source] * BLOCK % total))[: max(0, missing)]:
        entries[source] += 1
    for _ in range(-missing):
        entries[max(taking_part, key=lambda source: entries[source])] -= 1
    return tuple(entries)


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """The block that repeats while the weights stay."""

    entries: tuple[int, ...]
    """Entries of each source."""
    source: npt.NDArray[np.int64]
    """[BLOCK] the source at each slot."""
    number: npt.NDArray[np.int64]
    """[BLOCK] the entry of that source which stands there, from 0."""
    slots: tuple[npt.NDArray[np.int64], ...]
    """For each source [entries] the slots of its entries, ascending."""

    def counts(self, positions: int) -> tuple[int, ...]:
        """Entries of each source among the first positions."""
        blocks, rest = divmod(positions, BLOCK)
        return tuple(
            blocks * entries + int(np.searchsorted(slots, rest))
            for entries, slots in zip(self.entries, self.slots, strict=True)
        )

    def position(self, source: int, entry: int) -> int:
        """The position of an entry of a source; the inverse of `counts`."""
        block, number = divmod(entry, self.entries[source])
        return block * BLOCK + int(self.slots[source][number])


@lru_cache(maxsize=64)
def pattern(weights: tuple[int, ...]) -> Pattern:
    """The pattern of some weights."""
    entries = shares(weights)
    source = np.repeat(np.arange(len(entries)), entries)
    number = np.concatenate([np.arange(count) for count in entries])
    # The middle of each entry's part of the block; whole numbers, so that every machine sorts them alike.
    key = (2 * number + 1) * _KEY // (2 * np.repeat(np.asarray(entries), entries))
    slot = np.lexsort((source, key))
    source, number = source[slot], number[slot]
    slots = tuple(np.flatnonzero(source == which) for which in range(len(entries)))
    return Pattern(entries, source, number, slots)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """The positions between two changes of the weights."""

    first: int
    """Its first position."""
    stop: int | None
    """The position behind its last; None for the last stretch, which has no end."""
    turns: tuple[int, ...]
    """Turns that each source had before."""
    pattern: Pattern

    def counts(self, position: int) -> tuple[int, ...]:
        """Turns of each source before a position that is not before this stretch."""
        new = self.pattern.counts(position - self.first)
        return tuple(before + count for before, count in zip(self.turns, new, strict=True))


# Without slots: `cached_property` keeps its value in the object's dictionary.
@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The stream of samples of a run with several weighted sources."""

    version: ClassVar[int] = 2

    sizes: tuple[int, ...]
    """Number of samples of each source, in the order of the configuration."""
    seed: int
    global_batch_samples: int
    changes: tuple[Change, ...]
    """The weights of the sources: from step 0 on, and from later steps on; ascending."""
    epochs: int = 0
    """Epochs of the first source until the stream ends; 0 = endless."""

    def __post_init__(self) -> None:
        self._demand_rising_steps()
        if any(len(change.weights) != len(self.sizes) for change in self.changes) or min(self.sizes, default=0) < 1:
            raise ValueError(f"{len(self.sizes)} sources of {self.sizes} samples, with the weights {self.changes}")
        # The epochs of the first source are the length of the run, which has to end.
        if any(not change.weights[0] for change in self.changes):
            raise ValueError("the first source needs a weight in every stretch")

    def _demand_rising_steps(self) -> None:
        steps = [change.step for change in self.changes]
        if steps[:1] != [0] or any(later <= step for step, later in pairwise(steps)):
            raise ValueError(f"weights change at the steps {steps}, expected 0 and then larger ones")

    @property
    def num_samples(self) -> int:
        """See `SampleOrder`."""
        return sum(self.sizes)

    @property
    def epoch_samples(self) -> int:
        """See `SampleOrder`."""
        return self.sizes[0]

    @property
    def total_steps(self) -> int:
        """See `SampleOrder`."""
        return -(-self.total_samples // self.global_batch_samples)  # rounded up

    @cached_property
    def total_samples(self) -> int:
        """Length of the stream: it ends with the last sample of the first source's last epoch; 0 = endless."""
        return self.position(0, self.epochs * self.sizes[0] - 1) + 1 if self.epochs else 0

    def samples_of(self, step: int) -> npt.NDArray[np.int64]:
        """See `SampleOrder`. An index is a place in all sources, one after the other."""
        first = step * self.global_batch_samples
        stop = first + self.global_batch_samples
        if self.total_samples:
            stop = min(stop, self.total_samples)
        return self.between(first, max(first, stop))

    def between(self, first: int, stop: int) -> npt.NDArray[np.int64]:
        """Dataset indices of the positions [first, stop)."""
        samples = np.empty(stop - first, dtype=np.int64)
        source = self._sources(first, stop)
        turns = zip(self.counts(first), self.counts(stop), strict=True)
        starts = np.cumsum([0, *self.sizes[:-1]]).tolist()
        for which, (turn, end) in enumerate(turns):
            # The turns of a source between two positions have no gap, so they are a part of its own stream.
            samples[source == which] = starts[which] + stream(self._seed_of(which), self.sizes[which], turn, end)
        return samples

    def epoch_of(self, step: int) -> tuple[int, int]:
        """See `SampleOrder`; of the first source."""
        return divmod(self.counts(step * self.global_batch_samples)[0], self.sizes[0])

    def epochs_after(self, samples: int) -> float:
        """See `SampleOrder`; of the first source."""
        return self.counts(samples)[0] / self.sizes[0]

    def counts(self, position: int) -> tuple[int, ...]:
        """Turns of each source before a position."""
        return self._stretch_at(position).counts(position)

    def position(self, source: int, turn: int) -> int:
        """The position at which a source has a turn.

        Raises:
            LookupError: The source has no part any more when the turn would come.
        """
        for stretch in self._stretches:
            entry = turn - stretch.turns[source]
            if stretch.stop is not None and stretch.counts(stretch.stop)[source] <= turn:
                continue
            if stretch.pattern.entries[source]:
                return stretch.first + stretch.pattern.position(source, entry)
        raise LookupError(f"source {source} has no turn {turn}")

    def _sources(self, first: int, stop: int) -> npt.NDArray[np.int64]:
        """The source at each of the positions [first, stop)."""
        pieces = [np.empty(0, dtype=np.int64)]
        while first < stop:
            stretch = self._stretch_at(first)
            end = stop if stretch.stop is None else min(stop, stretch.stop)
            pieces.append(stretch.pattern.source[np.arange(first - stretch.first, end - stretch.first) % BLOCK])
            first = end
        return np.concatenate(pieces)

    def _seed_of(self, source: int) -> int:
        # The first source has the run's own seed: alone it has the order of a run with one source.
        return mix64(self.seed + source * GOLDEN) >> 1 if source else self.seed

    def _stretch_at(self, position: int) -> _Stretch:
        return next(stretch for stretch in reversed(self._stretches) if stretch.first <= position)

    @cached_property
    def _stretches(self) -> tuple[_Stretch, ...]:
        stretches: list[_Stretch] = []
        turns = (0,) * len(self.sizes)
        stops = [change.step * self.global_batch_samples for change in self.changes[1:]]
        for change, stop in zip(self.changes, [*stops, None], strict=True):
            first = change.step * self.global_batch_samples
            stretch = _Stretch(first, stop, turns, pattern(change.weights))
            stretches.append(stretch)
            if stop is not None:
                turns = stretch.counts(stop)
        return tuple(stretches)
