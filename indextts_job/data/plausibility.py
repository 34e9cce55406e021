"""What no single file shows: whole datasets whose codes, speaker vectors or clips are of the wrong kind. Pure.

Such data trains with a normal loss. The speech that the model learns from it is too fast, never ends, or has no voice.
`train` asks these questions before its first step, and `doctor data` shows all places.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indextts_job.model.versions import VERSIONS, ModelVersion

RATE_TOLERANCE = 1.0
"""Codes per second that a dataset may be off: rounding of the duration, and the last, half-filled code."""
TAIL_CODES, TAIL_SHARE = 12, 0.05
"""More equal codes than this at the end are a tail, and more utterances than this share with one are a fault."""
CUT_SECONDS, CUT_SHARE = (20, 25), 0.01
"""Lengths at which the public preprocessing cuts clips but not their texts, and the share that is a fault."""
OTHER_RATE_SHARE = 0.05
EQUAL_SHARE = 0.5
UNIT_NORM_TOLERANCE = 1e-3
DOUBLE = (1.7, 2.3)
"""Ratio between the medians of two sources whose codes have 50 and 25 in a second."""
FEW = 8
"""With fewer utterances, a share says nothing."""
FEW_PLACES = 2
"""So many by chance are no fault, whatever their share is."""

Numbers = npt.NDArray[np.floating]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of the pairs of a manifest: [pairs] each."""

    code_lengths: npt.NDArray[np.integer]
    tails: npt.NDArray[np.integer]
    """Equal codes at the end."""
    durations_s: Numbers
    """Of the target; NaN where it is not known."""
    speakers: npt.NDArray[np.integer]
    """A number for each speaker of a target; -1 where it is not known."""
    speaker_vectors: npt.NDArray[np.integer]
    """A number for each distinct conditioning array."""
    prompts: npt.NDArray[np.integer]
    """A number for each prompt."""
    speaker_norms: Numbers


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Something that a whole dataset shows."""

    subject: str
    text: str
    advice: str
    places: Places
    """The pairs that show it."""
    certain: bool = False
    """Whether it can be nothing but a fault."""

    def __str__(self) -> str:
        return f"{self.text}. {self.advice}"


def suspicions(evidence: Evidence, version: ModelVersion) -> Iterator[Suspicion]:
    """What is wrong with a dataset as a whole.

    Args:
        evidence: About its pairs, all without faults of their own.
        version: The version of the model that it is for.
    """
    if not len(evidence.code_lengths):
        return
    yield from _other_rate(evidence, version)
    if version.ranks:  # 2.0's data has been trained on without these questions; doctor asks its own about tails
        yield from _tails(evidence, version)
        yield from _cut_clips(evidence, version)
        yield from _unit_vectors(evidence)
        yield from _equal_vectors(evidence)


def uneven_sources(sources: Sequence[tuple[str, str, float]]) -> Iterator[str]:
    """Sources of one language with twice the codes of another: codes of two rates. A note for each.

    Args:
        sources: Name, language, and median of codes per text id of each.
    """
    for name, language, rate in sources:
        for other, of_other, slower in sources:
            if language == of_other and DOUBLE[0] <= rate / slower <= DOUBLE[1]:
                yield (
                    f"{name} has {rate:.2f} codes per text id, {other} {slower:.2f}, both of "
                    f"{language or 'no language'}: codes of two rates? One of them is spoken at half or twice its speed"
                )
                break


def _other_rate(evidence: Evidence, version: ModelVersion) -> Iterator[Suspicion]:
    known = np.flatnonzero(~np.isnan(evidence.durations_s))
    if not len(known):
        return
    rates = evidence.code_lengths[known] / evidence.durations_s[known]
    expected = version.codes_per_second
    advice = f"Encode the audio with the codec of {version}: codes of one rate can't be turned into the other."
    of_others = False
    for other in VERSIONS:
        places = known[of_rate(rates, other)] if other != version else known[:0]
        # A few padded clips have the other rate by chance.
        if len(places) > max(FEW_PLACES, OTHER_RATE_SHARE * len(known)):
            of_others = True
            text = f"{len(places)} of {len(known)} have {other.codes_per_second:.1f} codes per second of audio"
            whose = f"{version} has {expected}, {other} has {other.codes_per_second}. {advice}"
            yield Suspicion("code rate", text, whose, places, certain=True)
    rate = float(np.median(rates))
    if version.ranks and not of_others and abs(rate - expected) > RATE_TOLERANCE:
        text = f"{rate:.1f} codes per second of audio (median of {len(known)}), {version} has {expected}"
        # No codec has this rate, so durations may be those of something else: this alone stops nothing.
        yield Suspicion("code rate", text, advice, known[~of_rate(rates, version)])


def of_rate(rates: Numbers, version: ModelVersion) -> npt.NDArray[np.bool_]:
    """Which rates, in codes per second, are those of a version's codec."""
    return np.abs(rates - version.codes_per_second) <= RATE_TOLERANCE


def _tails(evidence: Evidence, version: ModelVersion) -> Iterator[Suspicion]:
    lengths, durations = evidence.code_lengths, evidence.durations_s
    longer = lengths > version.codes_per_second * np.nan_to_num(durations, nan=np.inf) + 2
    for other in VERSIONS:
        if other != version:
            longer &= ~of_rate(lengths / durations, other)  # not padding, but codes of another codec
    with_tail = np.flatnonzero((evidence.tails > TAIL_CODES) | longer)
    if len(with_tail) > max(FEW_PLACES, TAIL_SHARE * len(lengths)):
        count = f"{len(with_tail)} of {len(lengths)}"
        text = f"{count} end in more than {TAIL_CODES} equal codes, or have more codes than their clip"
        advice = "Padding of a batch; the model learns to stop only after it. Cut it: doctor data --repair drop-tails."
        yield Suspicion("code tails", text, advice, with_tail)


def _cut_clips(evidence: Evidence, version: ModelVersion) -> Iterator[Suspicion]:
    maxima = [seconds * version.codes_per_second for seconds in CUT_SECONDS]
    cut = np.flatnonzero(np.isin(evidence.code_lengths, maxima))
    if len(cut) > max(FEW_PLACES, CUT_SHARE * len(evidence.code_lengths)):
        text = f"{len(cut)} of {len(evidence.code_lengths)} have exactly {' or '.join(map(str, maxima))} codes"
        advice = "Clips that were cut while their texts were not: the model learns to stop early. Leave them out."
        yield Suspicion("cut clips", text, advice, cut)


def _unit_vectors(evidence: Evidence) -> Iterator[Suspicion]:
    if len(evidence.speaker_norms) and (np.abs(evidence.speaker_norms - 1) <= UNIT_NORM_TOLERANCE).all():
        text = "all speaker vectors have length 1"
        advice = "They were normalised; the model takes CAMPPlus' output as it is. Compute them again."
        yield Suspicion("speaker vectors", text, advice, np.arange(len(evidence.speaker_norms)), certain=True)


def _equal_vectors(evidence: Evidence) -> Iterator[Suspicion]:
    """Different prompts of a speaker with one vector."""
    _, first = np.unique(evidence.prompts, return_index=True)
    pairs = np.sort(first)  # one pair for each prompt
    keys = np.stack([evidence.speakers[pairs], evidence.speaker_vectors[pairs]], axis=1)
    _, group, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    equal = pairs[counts[group.reshape(-1)] > 1]
    if len(pairs) >= FEW and len(equal) > EQUAL_SHARE * len(pairs):
        text = f"{len(equal)} of {len(pairs)} prompts have the same speaker vector as another prompt of their speaker"
        advice = "The voice will not follow the prompt. Compute a vector for each prompt."
        yield Suspicion("speaker vectors", text, advice, equal)
