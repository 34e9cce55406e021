"""Judges the figures of spoken codes by limits. Pure."""

import math
from collections.abc import Iterator
from functools import lru_cache

from indextts_job.checkpoint.history import Speech
from indextts_job.speaking.config import SpeakingLimits

RISK = 0.05
"""One-sided: a share within its limit is taken for one beyond it at most so often."""
HALVINGS = 60
"""Of the interval from 0 to 1: to the last digit of a float64."""
SHARES = ("no_stop", "early_stop", "loops", "silence", "special")


@lru_cache(maxsize=1024)
def lower_bound(bad: int, count: int) -> float:
    """Exact one-sided 95 % lower bound of a share (Clopper and Pearson 1934).

    Args:
        bad: Records that show something.
        count: All records, at least `bad`.

    Returns:
        The share with which so many bad ones, or more, would come with probability 0.05; 0 without a bad one.
    """
    if not bad:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _at_least(bad, count, middle) > RISK else (middle, high)
    return low


def _at_least(bad: int, count: int, share: float) -> float:
    """Probability of so many bad records or more, at a share strictly between 0 and 1."""
    # The side with fewer terms. Where it is asked for, the probability is near 0.05, so 1 - 0.95 loses no digit.
    if 2 * bad <= count:
        return 1 - _sum_of(range(bad), count, share)
    return _sum_of(range(bad, count + 1), count, share)


def _sum_of(numbers: range, count: int, share: float) -> float:
    """Probability of these numbers of bad records (binomial)."""
    logs = (
        math.lgamma(count + 1)
        - math.lgamma(number + 1)
        - math.lgamma(count - number + 1)
        + number * math.log(share)
        + (count - number) * math.log1p(-share)
        for number in numbers
    )
    return math.fsum(map(math.exp, logs))


def broken(speech: Speech, limits: SpeakingLimits) -> list[str]:
    """The limits that a language breaks, in words; none with too few records.

    Args:
        speech: Figures of the language.
        limits: The limits.
    """
    if speech.records < limits.minimum_records:
        return []
    named = speech.language or "no language"
    return [f"{named}: {text}" for text in (*_shares(speech, limits), *_values(speech, limits))]


def _shares(speech: Speech, limits: SpeakingLimits) -> Iterator[str]:
    for name in SHARES:
        bad, limit = getattr(speech, name), getattr(limits, name)
        bound = lower_bound(bad, speech.records)
        if bound > limit:
            yield f"{name} {bad} of {speech.records}, at least {bound:.1%}, limit {limit:.1%}"


def _values(speech: Speech, limits: SpeakingLimits) -> Iterator[str]:
    least, most = limits.length_ratio_least, limits.length_ratio_most
    if not least <= speech.length_ratio <= most:
        yield f"length_ratio {speech.length_ratio:.2f}, limits {least:g} and {most:g}"
    if speech.distinct < limits.distinct:
        yield f"distinct {speech.distinct:.2f}, at least {limits.distinct:g} expected"
    if speech.prefix_same > limits.prefix_same:
        yield f"prefix_same {speech.prefix_same:.2f}, limit {limits.prefix_same:g}"
