"""One unit: its audio read, checked and encoded, its rows in objects of the shard format, its record."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from indextts_job.data.containers import written
from indextts_job.data.dataset import content_digest
from indextts_job.data.shard_index import Kind, Shard
from indextts_job.data.sharding import container
from indextts_job.errors import AccessRefusedError
from indextts_job.hashing import integrity_digest
from indextts_job.model.config import GPTConfig
from indextts_job.prepare.audio import Clip, MissingAudioError, RefusedAudioError, read_clip
from indextts_job.prepare.audio_files import AudioFiles, place_of
from indextts_job.prepare.changed_audio import nothing_there
from indextts_job.prepare.frames import codes_of
from indextts_job.prepare.loudness import warnings_of
from indextts_job.prepare.records import OK, REFUSED, StoredObject, UnitRecord, UtteranceRecord
from indextts_job.prepare.unit_store import object_name, sha256_of
from indextts_job.prepare.units import Making, Unit
from indextts_job.prepare.utterances import Utterance
from indextts_job.redaction import redacted
from indextts_job.waiting import result

ONE_CODE_RATIO = 0.5
"""A clip of which one code makes up more is suspicious: silence, or a tone."""
CODES_KIND = "codes"
Check = Callable[[], object]
"""Called often; raises where the work should stop."""


class Encoded(Protocol):
    """The arrays of one clip."""

    @property
    def codes(self) -> npt.NDArray[np.int32]: ...  # noqa: D102
    @property
    def condition(self) -> npt.NDArray[np.float32]: ...  # noqa: D102
    @property
    def emotion(self) -> npt.NDArray[np.float32]: ...  # noqa: D102


class Encode(Protocol):
    """Makes arrays of clips; `encoders.Encoders` does."""

    def encode(self, clips: Sequence[npt.NDArray[np.float32]], budget: int, check: Check) -> Sequence[Encoded]:
        """The arrays of clips at 16 kHz, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How units are made."""

    model: GPTConfig
    making: Making
    batch_frames: int
    threads: int
    worker: str
    audio: AudioFiles = field(default_factory=AudioFiles)


@dataclass(frozen=True, slots=True)
class Made:
    """A unit that was made, and not committed yet."""

    record: UnitRecord
    objects: dict[str, bytes]
    """Content by name."""


def make(unit: Unit, encoders: Encode, settings: Settings, check: Check) -> Made:
    """Make a unit.

    Args:
        unit: The unit.
        encoders: Make arrays of clips.
        settings: How.
        check: Called between files, batches and clips.

    Raises:
        DataError: Not one of several audio files is there.
        AccessRefusedError: Not one of them may be read.
        UnavailableError: Audio could not be reached. No utterance is refused for that.
    """
    began_at_s = time.monotonic()
    found = _read(unit.utterances, settings, check)
    _demand_some(unit.utterances, found)
    good = [row for row, one in enumerate(found) if one.clip]
    clips = [one.clip.samples for one in found if one.clip]
    arrays = dict(zip(good, encoders.encode(clips, settings.batch_frames, check), strict=True))
    records = [_recorded(utterance, found[row], arrays.get(row)) for row, utterance in enumerate(unit.utterances)]
    made = _objects(len(records), arrays, settings.model)
    record = replace(
        made.record,
        unit=unit.number,
        key=unit.key,
        worker=settings.worker,
        seconds=round(time.monotonic() - began_at_s, 3),
        utterances=tuple(records),
    )
    return replace(made, record=record)


@dataclass(frozen=True, slots=True)
class _Read:
    """What reading the audio of an utterance gave."""

    version: str | None
    """Of the file, known before it was opened: one that is replaced meanwhile is read again by the next preparation."""
    clip: Clip | None = None
    error: Exception | None = None
    """Why there is none."""

    @property
    def missing(self) -> bool:
        """Whether the file was not there, or not readable at that time."""
        return isinstance(self.error, AccessRefusedError | MissingAudioError)


def _demand_some(utterances: Sequence[Utterance], found: Sequence[_Read]) -> None:
    """Refuse a unit of which nothing is there: a wrong folder, or a share that is not mounted."""
    kinds = {type(one.error) for one in found}
    if len(found) > 1 and kinds == {MissingAudioError}:
        raise nothing_there([one.url for one in utterances])
    if kinds == {AccessRefusedError} and found[0].error:
        raise found[0].error


def _read(utterances: Sequence[Utterance], settings: Settings, check: Check) -> list[_Read]:
    """The clip of each utterance, or why it is refused; several files are read at a time."""
    making = settings.making

    def read(utterance: Utterance) -> _Read:
        version = settings.audio.version(utterance.url)
        try:
            clip = read_clip(utterance.url, making.min_seconds, making.max_seconds)
        except (RefusedAudioError, AccessRefusedError) as error:
            return _Read(version, error=error)
        codes = codes_of(len(clip.samples), settings.model.version.codes_per_second)
        if not 0 < codes <= making.most_codes:
            reason = f"has {codes} codes, the model's limit is {making.most_codes}"
            return _Read(version, error=RefusedAudioError(reason))
        return _Read(version, clip)

    pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="audio")
    try:
        futures: list[Future[_Read]] = [pool.submit(read, utterance) for utterance in utterances]
        return [result(future, check) for future in futures]
    finally:
        # Not waited for: a read that hangs must not hold up a stop.
        pool.shutdown(wait=False, cancel_futures=True)


def _recorded(utterance: Utterance, found: _Read, arrays: Encoded | None) -> UtteranceRecord:
    clip, place, version = found.clip, place_of(utterance.url), found.version or ""
    if clip is None or arrays is None:
        return UtteranceRecord(
            id=utterance.id,
            status=REFUSED,
            reason=redacted(str(found.error)),
            place=place,
            audio_version=version,
            missing=found.missing,
        )
    return UtteranceRecord(
        id=utterance.id,
        status=OK,
        place=place,
        audio_version=version,
        audio_sha256=clip.sha256,
        sample_rate=clip.sample_rate,
        seconds=clip.seconds,
        codes=len(arrays.codes),
        levels=clip.levels,
        warnings=(*warnings_of(clip.levels, clip.sample_rate), *_of_codes(arrays.codes)),
        condition_digest=content_digest(arrays.condition).hex(),
        emotion_digest=content_digest(arrays.emotion).hex(),
    )


def _of_codes(codes: npt.NDArray[np.int32]) -> Sequence[str]:
    most = int(np.bincount(codes).max(initial=0))
    return ("one code in over half of the clip",) if most > ONE_CODE_RATIO * len(codes) else ()


def _objects(rows: int, arrays: dict[int, Encoded], model: GPTConfig) -> Made:
    """The objects of a unit; an utterance without arrays has rows of zeros that nothing refers to."""
    nothing = np.zeros(model.speaker_shape, np.float32), np.zeros(model.model_dim, np.float32)
    conditions = [arrays[row].condition if row in arrays else nothing[0] for row in range(rows)]
    emotions = [arrays[row].emotion if row in arrays else nothing[1] for row in range(rows)]
    codes = [arrays[row].codes if row in arrays else np.zeros(0, np.int32) for row in range(rows)]
    condition, content = hashed_shard("condition", conditions)
    emotion, of_emotions = hashed_shard("emotion", emotions)
    lengths = np.array([len(one) for one in codes], np.int64)
    of_codes = written({"kind": CODES_KIND}, {"codes": np.concatenate(codes), "lengths": lengths})
    stored = StoredObject(
        name=object_name(CODES_KIND, sha256_of(of_codes)), size_bytes=len(of_codes), sha256=sha256_of(of_codes)
    )
    record = UnitRecord(
        unit=0,
        key="",
        worker="",
        seconds=0.0,
        codes=stored,
        condition=condition,
        condition_shape=model.speaker_shape,
        emotion=emotion,
        checks={"condition": _checks(conditions), "emotion": _checks(emotions)},
        utterances=(),
    )
    return Made(record, {condition.name: content, emotion.name: of_emotions, stored.name: of_codes})


def _checks(rows: Sequence[npt.NDArray[np.float32]]) -> str:
    return "".join(integrity_digest(np.ascontiguousarray(row).data).hex() for row in rows)


def hashed_shard(kind: Kind, rows: Sequence[npt.NDArray[np.generic]]) -> tuple[Shard, bytes]:
    """Rows as a shard that is named by the hash of its content.

    Returns:
        The shard and its content.
    """
    content = container(kind, rows)
    sha256 = sha256_of(content)
    shard = Shard(
        name=object_name(kind, sha256),
        rows=len(rows),
        size_bytes=len(content),
        data_start=8 + int.from_bytes(content[:8], "little"),
        sha256=sha256,
    )
    return shard, content
