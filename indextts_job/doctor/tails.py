"""Padded tails: codes after the end of a clip, left by a preprocessing that encodes clips in padded batches."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from indextts_job.doctor.survey import Pair, Survey

CODES_PER_SECOND = 50
"""Rate of the semantic codec: two feature frames of 10 ms make a code."""


@dataclass(frozen=True, slots=True)
class Tail:
    """An array of codes that is longer than its clip."""

    pair: Pair
    """Of the pairs that name the array, the one with the longest duration."""
    codes: int
    """Codes in the array."""
    speech: int
    """Codes from its start that belong to the clip."""

    def __str__(self) -> str:
        """File, line and id, and the lengths."""
        return f"{self.pair.where}: {self.codes} codes for {self.pair.duration_s:g} s, {self.speech} are speech"


def code_count(duration_s: float) -> int:
    """Number of codes of a clip that is encoded alone.

    The features are windows of 25 ms (400 samples at 16 kHz) every 10 ms (160 samples), and two of them make a code.
    """
    features = 1 + max(0, math.floor((duration_s * 16000 - 400) / 160))
    return math.ceil(features / 2)


def padded_tails(pairs: Iterable[Pair], found: Survey) -> dict[str, Tail]:
    """The arrays with a padded tail, by path; those without a known duration are left out.

    Args:
        pairs: Pairs whose arrays are good.
        found: The content of their arrays.
    """
    tails = {}
    for path, pair in _with_longest_duration(pairs).items():
        length, seconds = found.arrays[path].length, pair.duration_s or 0.0
        # One code more than its duration is a rounded duration.
        if length > CODES_PER_SECOND * seconds + 1:
            tails[path] = Tail(pair, length, code_count(seconds))
    return tails


def _with_longest_duration(pairs: Iterable[Pair]) -> dict[str, Pair]:
    """For each array of codes the pair with the longest duration: where pairs disagree, no speech is cut off."""
    longest: dict[str, Pair] = {}
    for pair in pairs:
        known = longest.get(pair.record.codes_path)
        if pair.duration_s and (known is None or pair.duration_s > (known.duration_s or 0)):
            longest[pair.record.codes_path] = pair
    return longest
