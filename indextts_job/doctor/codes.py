"""The findings about the codes of a dataset: lengths that do not fit the sound or the text."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from indextts_job.doctor.findings import Finding, data_finding
from indextts_job.doctor.survey import Pair, Survey
from indextts_job.doctor.tails import code_count, padded_tails

EQUAL_LENGTHS = 3
"""So many neighbours with one code length suggest a padded batch: by chance, 1 in 100,000 for clips of 2 to 15 s."""
PADDED_SHARE = 0.1
OUTLIER_DEVIATIONS = 8.0
"""Robust standard deviations of the logarithm of codes per token; a million good records have none beyond 8."""
ROBUST_DEVIATION = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation: 1 / Phi^-1(3/4)."""
LEAST_DEVIATION = 0.05
"""Keeps a dataset of nearly equal rates from having outliers that nobody could hear."""

Targets = Mapping[str, Pair]
"""One pair for each array of codes, by its path: many pairs may share a target."""


def examine_codes(pairs: Sequence[Pair], found: Survey) -> Iterator[Finding]:
    """Examine the codes of pairs without faults.

    Args:
        pairs: Pairs whose arrays are good.
        found: The content of their arrays.
    """
    targets = {pair.record.codes_path: pair for pair in pairs}
    yield from _lengths(targets, pairs, found)
    yield from _outliers(targets, found)


def _lengths(targets: Targets, pairs: Sequence[Pair], found: Survey) -> Iterator[Finding]:
    """Lengths beside durations, and the tails that padded batches leave."""
    known = sum(pair.duration_s is not None for pair in targets.values())
    padded = [str(tail) for tail in padded_tails(pairs, found).values()]
    short = _short_codes(targets, found)
    if padded:
        yield _padded(padded, known)
    if short:
        yield _lacking(short, known)
    # Equal lengths are the weaker sign of the same fault, of use where durations show nothing. With 25 codes a second
    # they are too common; there equal codes at the end are the sign.
    equal = [] if padded or found.limits.model.version.ranks else _equal_neighbours(targets, found)
    if len(equal) > PADDED_SHARE * len(targets):
        yield _probably_padded(equal, len(targets))
    elif not padded and not short:
        yield _good_lengths(len(targets), known)


def _good_lengths(targets: int, known: int) -> Finding:
    told = f", {known} against their duration" if known else "; no durations to compare with"
    return data_finding("code lengths", "ok", f"{targets} checked{told}")


def _probably_padded(equal: Sequence[str], targets: int) -> Finding:
    text = (
        f"{len(equal)} of {targets} are in a row of at least {EQUAL_LENGTHS} neighbours with the same number of codes"
    )
    advice = (
        "They look like batches that were padded to their longest clip. Give durations, or encode one clip at a time."
    )
    return data_finding("code tails", "warning", text, advice, equal)


def _lacking(short: Sequence[str], known: int) -> Finding:
    return data_finding("short codes", "warning", f"{len(short)} of {known} lack codes", "Encode them again.", short)


def _padded(padded: Sequence[str], known: int) -> Finding:
    advice = (
        "The tail is the padding of a batch, and the model learns to stop only after it. Keep the speech only: "
        "--repair drop-tails --output FOLDER writes such a dataset."
    )
    text = f"{len(padded)} of {known} have more codes than sound"
    return data_finding("code tails", "warning", text, advice, padded)


def _short_codes(targets: Targets, found: Survey) -> list[str]:
    short, rate = [], found.limits.model.version.codes_per_second
    for path, pair in targets.items():
        if pair.duration_s is None:
            continue
        length, expected = found.arrays[path].length, code_count(pair.duration_s, rate)
        # 0.1 s and one code are left for durations that were rounded.
        if length < expected - rate // 10 - 1:
            short.append(f"{pair.where}: {length} codes for {pair.duration_s:g} s, {expected} expected")
    return short


def _equal_neighbours(targets: Targets, found: Survey) -> list[str]:
    """Records in rows of one code length, sorted by the names of the utterances."""
    # Preprocessing encodes utterances in the order of their names, so those of one batch are neighbours.
    ordered = sorted(targets.items(), key=lambda item: item[1].target_id)
    rows = (list(row) for _, row in groupby(ordered, key=lambda item: found.arrays[item[0]].length))
    return [
        f"{pair.where}: {found.arrays[path].length} codes, as {len(row) - 1} neighbours"
        for row in rows
        if len(row) >= EQUAL_LENGTHS
        for path, pair in row
    ]


def _outliers(targets: Targets, found: Survey) -> Iterator[Finding]:
    """Pairs of a text and a sound that do not belong together: far too many or too few codes per token."""
    # The logarithm makes twice as fast and half as fast equally far from the middle.
    rates = {path: math.log(_codes_per_token(path, pair, found)) for path, pair in targets.items()}
    middle = statistics.median(rates.values())
    deviation = ROBUST_DEVIATION * statistics.median(abs(rate - middle) for rate in rates.values())
    bound = OUTLIER_DEVIATIONS * max(deviation, LEAST_DEVIATION)
    far = {path: rate for path, rate in rates.items() if abs(rate - middle) > bound}
    if far:
        details = [
            f"{targets[path].where}: {math.exp(rate):.1f} codes per token, usual are {math.exp(middle):.1f}: "
            f"{targets[path].text[:50]}"
            for path, rate in sorted(far.items(), key=lambda item: -abs(item[1] - middle))
        ]
        advice = "Listen to them: text and sound probably belong to different clips, or the clip is mostly silence."
        yield data_finding("speaking rate", "warning", f"{len(far)} texts do not fit their sound", advice, details)


def _codes_per_token(path: str, pair: Pair, found: Survey) -> float:
    return found.arrays[path].length / found.arrays[pair.record.text_ids_path].length
