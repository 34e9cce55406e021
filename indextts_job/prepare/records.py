"""What a finished unit recorded: its data objects, and what was found about each utterance. Pure.

A record is one small JSON object, and creating it is the commit of a unit. The objects that it names are written
before it, under the hash of their bytes, so two workers that finish the same unit do not disturb each other.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from indextts_job.data.shard_index import Shard
from indextts_job.parsing import Count, parsed, plain

FORMAT_VERSION = 1
OK: Literal["ok"] = "ok"
REFUSED: Literal["refused"] = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """What the samples of a clip are like; warnings are read from it."""

    peak: float = 0.0
    """Largest absolute value; 1 is full scale."""
    rms_dbfs: float = 0.0
    clipped_ratio: float = 0.0
    """Share of samples at full scale."""
    silence_ratio: float = 0.0
    """Share of silent frames."""
    leading_silence_s: float = 0.0
    trailing_silence_s: float = 0.0
    digital_silence_ratio: float = 0.0
    """Share of samples that are exactly zero, in runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UtteranceRecord:
    """What was found about one utterance; its row is its place in the unit."""

    id: str
    status: Literal["ok", "refused"]
    reason: str = ""
    """Why it was refused."""
    place: str = ""
    """Where its audio lay: the path or URL without what signs a link; empty in records of earlier releases."""
    audio_version: str = ""
    """Size and time or hash of the audio file, as they are known without opening it; empty if they are not."""
    missing: bool = False
    """Whether it was refused because its audio was not there, or not readable at that time."""
    audio_sha256: str = ""
    sample_rate: Count = 0
    """Of the file."""
    seconds: float = 0.0
    codes: Count = 0
    levels: Levels | None = None
    warnings: tuple[str, ...] = ()
    condition_digest: str = ""
    """BLAKE2b digest of its condition, as 32 hexadecimal digits."""
    emotion_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """A data object that is no shard."""

    name: str
    size_bytes: Count
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRecord:
    """The commit of one unit."""

    format_version: Count = FORMAT_VERSION
    unit: Count
    key: str
    worker: str
    seconds: float
    """How long the unit took."""
    codes: StoredObject
    condition: Shard
    condition_shape: tuple[Count, ...]
    emotion: Shard
    checks: dict[str, str]
    """For condition and emotion: hashes of the stored bytes of each row, 32 hexadecimal digits each, end to end."""
    utterances: tuple[UtteranceRecord, ...]

    @property
    def objects(self) -> dict[str, int]:
        """Names of its objects, and their sizes in bytes."""
        return {stored.name: stored.size_bytes for stored in (self.codes, self.condition, self.emotion)}


def to_bytes(record: UnitRecord) -> bytes:
    """A record as the content of its file."""
    return json.dumps(plain(record), ensure_ascii=False, allow_nan=False, sort_keys=True).encode()


def parse_record(content: bytes, name: str, ids: Sequence[str]) -> UnitRecord:
    """A record from the content of its file.

    Args:
        content: The content.
        name: Name of the file, for messages.
        ids: Ids of the unit's utterances, which it has to be about.

    Raises:
        ValueError: It is damaged, of another format, or about other utterances.
    """
    document = json.loads(content)
    if not isinstance(document, dict) or document.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{name} is no unit record of format {FORMAT_VERSION}")
    record = parsed(document, UnitRecord, name)
    if tuple(utterance.id for utterance in record.utterances) != tuple(ids):
        raise ValueError(f"{name} is about other utterances")
    if record.condition.rows != len(ids) or record.emotion.rows != len(ids):
        raise ValueError(f"{name} has shards of {record.condition.rows} and {record.emotion.rows} rows, not {len(ids)}")
    return record
