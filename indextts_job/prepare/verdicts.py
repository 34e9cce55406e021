"""Every utterance of the work list with its record and its text: taken, or refused by name."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from indextts_job.prepare.records import OK, UnitRecord, UtteranceRecord
from indextts_job.prepare.text_checks import Spoken, refusal, usual_scripts, warnings
from indextts_job.prepare.units import Unit
from indextts_job.prepare.utterances import Utterance

Ids = npt.NDArray[np.int32]
EncodeText = Callable[[Utterance], Ids]
"""The text ids of an utterance, as the model reads them."""
EXAMPLES = 5
"""Ids shown of each warning."""


@dataclass(frozen=True, slots=True)
class Taken:
    """An utterance of the dataset."""

    place: int
    """Its place in the work list, which is its row in the shards of conditions and emotions."""
    utterance: Utterance
    record: UtteranceRecord
    ids: Ids


@dataclass(frozen=True, slots=True)
class Refused:
    """An utterance that is left out."""

    utterance: Utterance
    reason: str


@dataclass(slots=True)
class Verdicts:
    """What becomes of the work list."""

    taken: list[Taken] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Number of utterances by warning."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Some of their ids."""

    def warn(self, what: str, name: str) -> None:
        """Count a warning."""
        self.counts[what] += 1
        if len(known := self.examples.setdefault(what, [])) < EXAMPLES:
            known.append(name)


def judge(
    units: Sequence[Unit],
    records: Sequence[UnitRecord],
    encode: EncodeText,
    limits: tuple[int, int | None],
    check: Callable[[], object],
) -> Verdicts:
    """Judge every utterance.

    Args:
        units: All units.
        records: Their records.
        encode: Gives text ids.
        limits: Text ids that the model accepts, and the id for what the tokenizer has no piece for, if any.
        check: Called for every unit; may raise.
    """
    verdicts = Verdicts()
    most_ids, unknown_id = limits
    scripts = usual_scripts((one.language, one.text) for unit in units for one in unit.utterances)
    seen: dict[str, str] = {}
    place = 0
    for unit, record in zip(units, records, strict=True):
        check()
        for utterance, found in zip(unit.utterances, record.utterances, strict=True):
            ids = encode(utterance) if found.status == OK else np.zeros(0, np.int32)
            spoken = Spoken(utterance.text, utterance.language, ids.tolist(), found.seconds, utterance.duration_s)
            reason = found.reason if found.status != OK else refusal(spoken, most_ids)
            if reason:
                verdicts.refused.append(Refused(utterance, reason))
            else:
                verdicts.taken.append(Taken(place, utterance, found, ids))
                _warn(verdicts, (*found.warnings, *warnings(spoken, unknown_id, scripts)), utterance, found, seen)
            place += 1
    return verdicts


def _warn(
    verdicts: Verdicts, said: Iterable[str], utterance: Utterance, found: UtteranceRecord, seen: dict[str, str]
) -> None:
    for what in said:
        verdicts.warn(what, utterance.id)
    if seen.setdefault(found.audio_sha256, utterance.id) != utterance.id:
        verdicts.warn("the same audio under two ids", utterance.id)
