"""Units of work: the work list cut into equal parts, each named by a key of everything its arrays depend on. Pure.

Text, language, speaker and pairs are not in the key: no array that a unit makes depends on them. Lines appended to a
manifest leave every full unit as it was.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from indextts_job.hashing import identity_hash
from indextts_job.prepare.utterances import Utterance

ALGORITHM = 1
"""Version of everything between audio and arrays; a change of it makes every unit again."""
KEY_DIGITS = 32
NAME = re.compile(rf"(\d{{5,9}})-([0-9a-f]{{{KEY_DIGITS}}})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """What the arrays of all units depend on."""

    encoders: Mapping[str, str]
    """SHA-256 of the tensors of each encoder, by its name."""
    min_seconds: float
    max_seconds: float
    most_codes: int
    """Codes that the model accepts."""
    algorithm: int = ALGORITHM

    @property
    def identity(self) -> str:
        """A text that is equal where all of it is."""
        values = [self.algorithm, self.min_seconds, self.max_seconds, self.most_codes, dict(self.encoders)]
        return json.dumps(values, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Unit:
    """Consecutive utterances of the work list."""

    number: int
    key: str
    utterances: tuple[Utterance, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """Name of its record, without an ending."""
        return f"{self.number:05d}-{self.key}"


def cut(utterances: Sequence[Utterance], size: int, making: Making) -> list[Unit]:
    """Cut the work list into units.

    Args:
        utterances: The work list.
        size: Utterances of a unit; the last one may have fewer.
        making: What the arrays depend on.
    """
    identity = making.identity
    parts = [tuple(utterances[start : start + size]) for start in range(0, len(utterances), size)]
    return [Unit(number, _key(part, identity), part) for number, part in enumerate(parts)]


def _key(utterances: Sequence[Utterance], identity: str) -> str:
    references = [(utterance.id, utterance.reference) for utterance in utterances]
    return identity_hash(json.dumps([identity, references]).encode())[:KEY_DIGITS]
