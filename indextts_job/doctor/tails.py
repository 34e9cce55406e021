"""Padded tails: codes beyond the sound of their clip, which a preprocessing in batches leaves behind."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from indextts_job.doctor.survey import Pair, Survey

CODES_PER_SECOND = 50


@dataclass(frozen=True, slots=True)
class Tail:
    """A codes array that is longer than its sound."""

    pair: Pair
    """The one with the longest duration, of those that name the array."""
    codes: int
    speech: int
    """Codes from the beginning that are the clip's own."""

    def __str__(self) -> str:
        """Where, and how long."""
        return f"{self.pair.where}: {self.codes} codes for {self.pair.duration_s:g} s, {self.speech} are speech"


def code_count(duration_s: float) -> int:
    """Codes of a clip of so many seconds alone: features of 25 ms every 10 ms at 16 kHz, two of them a code."""
    features = 1 + max(0, math.floor((duration_s * 16000 - 400) / 160))
    return math.ceil(features / 2)


def padded_tails(pairs: Iterable[Pair], found: Survey) -> dict[str, Tail]:
    """Arrays with a padded tail by path, as far as durations tell.

    Args:
        pairs: Those to look at; their arrays are good.
        found: Lengths of the arrays.
    """
    longest: dict[str, Pair] = {}
    for pair in pairs:
        known = longest.get(pair.record.codes_path)
        if pair.duration_s and (known is None or pair.duration_s > (known.duration_s or 0)):
            longest[pair.record.codes_path] = pair
    tails = {}
    for path, pair in longest.items():
        length, seconds = found.arrays[path].length, pair.duration_s or 0.0
        if length > CODES_PER_SECOND * seconds + 1:
            tails[path] = Tail(pair, length, code_count(seconds))
    return tails
