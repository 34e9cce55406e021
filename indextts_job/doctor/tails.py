"""Padded tails: codes after the end of a clip, left by a preprocessing that encodes clips in padded batches."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from indextts_job.data.plausibility import RATE_TOLERANCE
from indextts_job.doctor.survey import Pair, Survey
from indextts_job.model.versions import VERSIONS

FRAMES_PER_SECOND = 50
"""Frames of features that the codecs read."""


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


def code_count(duration_s: float, codes_per_second: int) -> int:
    """Number of codes of a clip that is encoded alone.

    The features are windows of 25 ms (400 samples at 16 kHz) every 10 ms (160 samples), and two of them make a frame.
    A code is one frame where there are 50 in a second, and two where there are 25.

    Args:
        duration_s: Duration of the clip.
        codes_per_second: Rate of the codec.
    """
    features = 1 + max(0, math.floor((duration_s * 16000 - 400) / 160))
    return math.ceil(math.ceil(features / 2) * codes_per_second / FRAMES_PER_SECOND)


def padded_tails(pairs: Iterable[Pair], found: Survey) -> dict[str, Tail]:
    """The arrays with a padded tail, by path; those without a known duration are left out.

    Args:
        pairs: Pairs whose arrays are good.
        found: The content of their arrays.
    """
    tails, rate = {}, found.limits.model.version.codes_per_second
    for path, pair in _with_longest_duration(pairs).items():
        length, seconds = found.arrays[path].length, pair.duration_s or 0.0
        if seconds and _of_other_codec(length / seconds, found):
            continue  # nothing of it is padding
        # One code more than its duration is a rounded duration.
        if length > rate * seconds + 1:
            tails[path] = Tail(pair, length, code_count(seconds, rate))
    return tails


def _of_other_codec(rate: float, found: Survey) -> bool:
    """Whether codes per second are those of another version's codec."""
    others = (version for version in VERSIONS if version != found.limits.model.version)
    return any(abs(rate - version.codes_per_second) <= RATE_TOLERANCE for version in others)


def _with_longest_duration(pairs: Iterable[Pair]) -> dict[str, Pair]:
    """For each array of codes the pair with the longest duration: where pairs disagree, no speech is cut off."""
    longest: dict[str, Pair] = {}
    for pair in pairs:
        known = longest.get(pair.record.codes_path)
        if pair.duration_s and (known is None or pair.duration_s > (known.duration_s or 0)):
            longest[pair.record.codes_path] = pair
    return longest
