"""Figures of spoken codes. Pure: codes in, figures out, no audio."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indextts_job.checkpoint.history import Speech

EARLY = 0.5
"""An output shorter than this share of its reference has stopped early."""
LONGEST_LOOP = 8
"""Codes of the longest sequence whose repetition is looked for."""
LEAST_REPEATS = 4
LOOP_S = 1.0
"""A loop lasts at least so long."""
ENTROPY_DIGITS = 4
"""Of the mean entropy, in nats. It is in the history, and float32 is exact to about two digits more."""
SILENCE_S = 1.5
"""One code for longer than this is silence, or a tone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What was spoken of one record. Plain values: they travel between ranks."""

    key: str
    """Id of the record; of a free text, its number."""
    language: str
    text: tuple[int, ...]
    """The ids that were spoken."""
    codes: tuple[int, ...]
    stopped: bool
    entropy: float
    expected: float
    """Codes of the reference; of a free text, as many as its source has for a text of this length."""
    reference: tuple[int, ...] | None = None
    may_stop: bool = True
    """Whether the reference with its stop fits into the limit of codes: else a model that speaks so cannot stop."""
    in_training: tuple[int, ...] | None = None
    """The codes with training's positions; None where they were not tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What the figures are measured with."""

    codes_per_second: int
    first_special: int
    """The start code; no code of speech is as large."""
    tails: frozenset[int] = frozenset()
    """Codes of the training data that tails have much more often."""


def figures(language: str, heard: Sequence[Heard], scale: Scale) -> Speech:
    """The figures of some records.

    Args:
        language: Their language.
        heard: At least one record.
        scale: What they are measured with.
    """

    def count(is_bad: Callable[[Heard], bool]) -> int:
        return sum(map(is_bad, heard))

    rate = scale.codes_per_second
    ratios = np.array([len(one.codes) / max(1.0, one.expected) for one in heard])
    p5, p95 = np.percentile(ratios, [5, 95])
    return Speech(
        language=language,
        records=len(heard),
        no_stop=count(lambda one: one.may_stop and not one.stopped),
        early_stop=count(lambda one: len(one.codes) < EARLY * one.expected),
        loops=count(lambda one: has_loop(one.codes, rate)),
        silence=count(lambda one: longest_run(one.codes) > SILENCE_S * rate),
        special=count(lambda one: any(code >= scale.first_special for code in one.codes)),
        length_ratio=sum(len(one.codes) for one in heard) / max(1.0, math.fsum(one.expected for one in heard)),
        length_p5=float(p5),
        length_p95=float(p95),
        longest_run_s=max(longest_run(one.codes) for one in heard) / rate,
        distinct=_distinct(heard),
        prefix_same=prefix_same([(one.text, one.codes) for one in heard]),
        entropy=round(math.fsum(one.entropy for one in heard) / len(heard), ENTROPY_DIGITS),
        agreement=_mean(_agreements(heard, lambda one: one.codes)),
        agreement_training_positions=_mean(_agreements(heard, lambda one: one.in_training)),
        tail_codes=_tail_codes(heard, scale.tails),
    )


def _mean(values: Iterator[float]) -> float | None:
    found = list(values)
    return math.fsum(found) / len(found) if found else None


def _agreements(heard: Sequence[Heard], codes_of: Callable[[Heard], tuple[int, ...] | None]) -> Iterator[float]:
    for one in heard:
        codes = codes_of(one)
        if one.reference is not None and codes is not None:
            yield agreement(codes, one.reference)


def _distinct(heard: Sequence[Heard]) -> float:
    """Distinct outputs over distinct pairs of text and output: 1 unless different texts sound alike.

    Several voices speak one text, alike or not. Counted against texts, their differences would hide a collapse.
    """
    pairs = {(one.language, one.text, one.codes) for one in heard}
    return len({(language, codes) for language, _, codes in pairs}) / len(pairs)


def _tail_codes(heard: Sequence[Heard], tails: frozenset[int]) -> float | None:
    if not tails:
        return None
    codes = [code for one in heard for code in one.codes]
    return sum(code in tails for code in codes) / max(1, len(codes))


def longest_run(codes: Sequence[int]) -> int:
    """Length of the longest run of one code."""
    return max((len(list(run)) for _, run in itertools.groupby(codes)), default=0)


def has_loop(codes: Sequence[int], codes_per_second: int) -> bool:
    """Whether up to eight codes are repeated in a row, at least four times and for a second.

    Args:
        codes: The codes.
        codes_per_second: Rate of the codec.
    """
    values = np.array(codes)
    return any(
        repeats(values, length) >= max(LEAST_REPEATS, math.ceil(LOOP_S * codes_per_second / length))
        for length in range(1, LONGEST_LOOP + 1)
    )


def repeats(values: npt.NDArray[np.int64], length: int) -> int:
    """How often in a row some sequence of this length stands, at most.

    Args:
        values: [codes].
        length: Codes of the sequence.
    """
    if len(values) < length:
        return 0
    # A code that equals the one `length` before goes on with a repetition.
    same = values[length:] == values[:-length]
    longest = max((sum(1 for _ in run) for equal, run in itertools.groupby(same.tolist()) if equal), default=0)
    return longest // length + 1


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Least number of codes to insert, remove or replace (Levenshtein 1966)."""
    target = np.array(other)
    places = np.arange(len(target) + 1)
    row = places.copy()
    for code in one:
        best = np.minimum(row[1:] + 1, row[:-1] + (target != code))
        # Insertions run along the row: the least of `best` so far, plus one for each step since.
        row = np.minimum.accumulate(np.concatenate([[row[0] + 1], best]) - places) + places
    return int(row[-1])


def agreement(codes: Sequence[int], reference: Sequence[int]) -> float:
    """1 - edit distance over the longer length; 1 for equal sequences."""
    return 1 - edit_distance(codes, reference) / max(1, len(codes), len(reference))


def prefix_same(spoken: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
    """Mean common prefix of the outputs of two different texts, over the mean length of all outputs.

    Args:
        spoken: Texts and their outputs.

    Returns:
        0 where there are no two texts.
    """
    by_text: dict[tuple[int, ...], list[Sequence[int]]] = {}
    for text, codes in spoken:
        by_text.setdefault(tuple(text), []).append(codes)
    groups = list(by_text.values())
    pairs = math.comb(len(spoken), 2) - sum(math.comb(len(group), 2) for group in groups)
    common = _common_prefixes([codes for _, codes in spoken]) - sum(map(_common_prefixes, groups))
    length = sum(len(codes) for _, codes in spoken) / max(1, len(spoken))
    return common / pairs / length if pairs and length else 0.0


def _common_prefixes(outputs: Sequence[Sequence[int]]) -> int:
    """Sum of the common prefixes of all pairs.

    In sorted order, that of two outputs is the least of those of the neighbours between them. So the sum over all pairs
    that end at an output follows from that of the one before, and no pair is looked at by itself.
    """
    ordered = sorted(map(tuple, outputs))
    whole = total = 0
    lows: list[tuple[int, int]] = []  # rising common prefixes with the present output, and how many have each
    for one, other in itertools.pairwise(ordered):
        common, count = common_prefix(one, other), 1
        while lows and lows[-1][0] >= common:
            low, with_it = lows.pop()
            total, count = total - low * with_it, count + with_it
        lows.append((common, count))
        total += common * count
        whole += total
    return whole


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of equal codes at the beginning."""
    equal = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in equal)


def tail_codes(records: Sequence[npt.NDArray[np.integer]], tail: int, codes: int) -> frozenset[int]:
    """Codes that tails have more than ten times as often as the rest of the records.

    Args:
        records: Codes of training records.
        tail: Codes at the end of each that are its tail.
        codes: Number of different codes.
    """
    ends = np.bincount(np.concatenate([one[-tail:] for one in records]), minlength=codes)
    inner = np.bincount(np.concatenate([one[:-tail] for one in records]), minlength=codes)
    # Add-one counts: a code that the rest has by chance not at all is no tail code yet.
    often = (ends + 1) / max(1, ends.sum()) > TAIL_FACTOR * (inner + 1) / max(1, inner.sum())
    return frozenset(np.flatnonzero(often & (ends >= LEAST_TAILS)).tolist())


TAIL_FACTOR = 10
LEAST_TAILS = 8
"""Occurrences in tails below which a code says nothing."""
