"""The index of one split: its pairs, over the shards of all units and shards of its own text ids and codes."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from indextts_job.data.containers import written
from indextts_job.data.dataset import CHUNK, DIGEST_BYTES, USES, Values, identity_bytes
from indextts_job.data.dataset import content_digest as digest_of
from indextts_job.data.shard_index import FORMAT_VERSION, OTHER_EMOTION, PREPARED_BY, MadeFor, Shard
from indextts_job.data.texts import Bytes, Texts
from indextts_job.hashing import integrity_digest
from indextts_job.prepare.compute import hashed_shard
from indextts_job.prepare.pairing import Candidate
from indextts_job.prepare.records import UnitRecord
from indextts_job.prepare.verdicts import Taken

SHARD_BYTES = 64 * 2**20
"""Approximate size of a shard of text ids and codes."""
Numbers = npt.NDArray[np.int32]
Pair = tuple[Candidate, Candidate]
"""Target and prompt."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """The conditions and emotion vectors of all units: a row for each utterance of the work list."""

    tables: dict[str, Any]
    digests: dict[str, Bytes]
    checks: dict[str, Bytes]

    @classmethod
    def of(cls, records: Sequence[UnitRecord]) -> "Vectors":
        """Those of the records of all units, in their order."""
        shape, emotion = records[0].condition_shape, records[0].emotion
        width = (emotion.size_bytes - emotion.data_start) // emotion.rows // 4  # float32
        shapes: dict[str, tuple[int, ...]] = {"condition": shape, "emotion": (width,)}
        return cls(
            tables={kind: _table(records, kind, shapes[kind]) for kind in shapes},
            digests={kind: _row_digests(records, kind, shapes[kind]) for kind in shapes},
            checks={kind: _bytes("".join(record.checks[kind] for record in records)) for kind in shapes},
        )


def _table(records: Sequence[UnitRecord], kind: str, shape: tuple[int, ...]) -> dict[str, Any]:
    shards = [asdict(getattr(record, kind)) for record in records]
    return {"dtype": "float32", "row_shape": list(shape), "shards": shards}


def _row_digests(records: Sequence[UnitRecord], kind: str, shape: tuple[int, ...]) -> Bytes:
    """[rows, DIGEST_BYTES] of all units; the row of a refused utterance holds zeros."""
    zeros = digest_of(np.zeros(shape, np.float32)).hex()
    found = (getattr(one, f"{kind}_digest") for record in records for one in record.utterances)
    return _bytes("".join(digest or zeros for digest in found))


def _bytes(digits: str) -> Bytes:
    return np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(-1, DIGEST_BYTES)


@dataclass(slots=True)
class Utterances:
    """The text ids and codes of the targets of one split, in shards that are handed over as they are full.

    Args:
        dtype: Type of the stored ids.
        shard_bytes: Approximate size of a shard.
    """

    dtype: np.dtype[Any]
    shard_bytes: int = SHARD_BYTES
    shards: list[Shard] = field(default_factory=list)
    lengths: dict[str, list[int]] = field(default_factory=lambda: {"text": [], "codes": []})
    digests: dict[str, list[bytes]] = field(default_factory=lambda: {"text": [], "codes": []})
    checks: list[bytes] = field(default_factory=list)
    largest: dict[str, int] = field(default_factory=lambda: {"text": 0, "codes": 0})
    _rows: list[Values] = field(default_factory=list)
    _held_bytes: int = 0

    def add(self, text: Numbers, codes: Numbers) -> Iterator[tuple[str, bytes]]:
        """Add a row; gives name and content of a shard that is full."""
        row = np.concatenate([text, codes]).astype(self.dtype)
        for use, values in (("text", text), ("codes", codes)):
            self.lengths[use].append(len(values))
            self.digests[use].append(digest_of(np.ascontiguousarray(values, np.int32)))
            self.largest[use] = max(self.largest[use], int(values.max()))
        self.checks.append(integrity_digest(row.data))
        self._rows.append(row)
        self._held_bytes += row.nbytes
        if self._held_bytes >= self.shard_bytes:
            yield from self.flush()

    def flush(self) -> Iterator[tuple[str, bytes]]:
        """Name and content of the last shard, if there is anything in it."""
        if self._rows:
            shard, content = hashed_shard("ids", self._rows)
            self.shards.append(shard)
            self._rows, self._held_bytes = [], 0
            yield shard.name, content


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexParts:
    """What an index is made of."""

    pairs: Sequence[Pair]
    targets: Mapping[int, int]
    """Row of each target in the shards of ids, by its place in the work list."""
    utterances: Utterances
    vectors: Vectors
    made_for: MadeFor
    prepared_by: Mapping[str, Any]
    notes: Sequence[str]


def index_bytes(parts: IndexParts) -> bytes:
    """The content of an index."""
    ids = Texts.of(f"{target.id}__{prompt.id}" for target, prompt in parts.pairs)
    languages = sorted({target.language for target, _ in parts.pairs})
    targets, prompts = (np.array([one.place for one in side], np.int32) for side in zip(*parts.pairs, strict=True))
    rows = _rows(parts, targets, prompts, languages)
    digests = _digests(parts)
    arrays = {
        **ids.arrays("id"),
        **_named("pair_{}", rows),
        f"pair_{OTHER_EMOTION}": targets,
        **_named("{}_lengths", {use: np.array(values, np.int32) for use, values in parts.utterances.lengths.items()}),
        **_named("{}_digests", digests),
        "ids_checks": _joined(parts.utterances.checks),
        **_named("{}_checks", parts.vectors.checks),
    }
    header = {
        **_header(parts),
        "languages": languages,
        "fingerprint": _fingerprint(ids, _of_pairs(digests, rows, prompts)),
        OTHER_EMOTION: {"emotion": "target", "fingerprint": _fingerprint(ids, _of_pairs(digests, rows, targets))},
    }
    return written(header, arrays)


def _rows(parts: IndexParts, targets: Numbers, prompts: Numbers, languages: Sequence[str]) -> dict[str, Numbers]:
    """[pairs] for each pair its row in each table, and its language. The emotion is the prompt's."""
    places = {name: place for place, name in enumerate(languages)}
    return {
        "ids": np.array([parts.targets[place] for place in targets.tolist()], np.int32),
        "condition": prompts,
        "emotion": prompts,
        "language": np.array([places[target.language] for target, _ in parts.pairs], np.int32),
    }


def _digests(parts: IndexParts) -> dict[str, Bytes]:
    """[rows, DIGEST_BYTES] by use."""
    return {**{use: _joined(found) for use, found in parts.utterances.digests.items()}, **parts.vectors.digests}


def _of_pairs(digests: Mapping[str, Bytes], rows: Mapping[str, Numbers], emotion: Numbers) -> Bytes:
    """[pairs, 4 · DIGEST_BYTES] the digests of each pair, with the emotion vectors of these rows."""
    of_use = {"text": rows["ids"], "codes": rows["ids"], "condition": rows["condition"], "emotion": emotion}
    return np.concatenate([digests[use][of_use[use]] for use in USES], axis=1)


def _header(parts: IndexParts) -> dict[str, Any]:
    shards = [asdict(shard) for shard in parts.utterances.shards]
    return {
        "format_version": FORMAT_VERSION,
        "skipped": [],
        "notes": list(parts.notes),
        **asdict(parts.made_for),
        "largest": parts.utterances.largest,
        "tables": {**parts.vectors.tables, "ids": {"dtype": parts.utterances.dtype.name, "shards": shards}},
        PREPARED_BY: dict(parts.prepared_by),
    }


def _named(pattern: str, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {pattern.format(name): values for name, values in arrays.items()}


def _joined(digests: Sequence[bytes]) -> Bytes:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)


def _fingerprint(ids: Texts, digests: Bytes) -> str:
    """The fingerprint that `Dataset` computes of samples with these ids and digests, [samples, 4 · DIGEST_BYTES]."""
    digest = hashlib.sha256()
    for start in range(0, len(ids), CHUNK):
        stop = min(start + CHUNK, len(ids))
        digest.update(identity_bytes(*ids.between(start, stop), digests[start:stop]).data)
    return digest.hexdigest()


def candidate_of(taken: Taken) -> Candidate:
    """What pairing asks of an utterance."""
    utterance, record = taken.utterance, taken.record
    return Candidate(
        place=taken.place,
        id=utterance.id,
        speaker=utterance.speaker,
        language=utterance.language,
        text=utterance.text,
        audio_sha256=record.audio_sha256,
        seconds=record.seconds,
    )
