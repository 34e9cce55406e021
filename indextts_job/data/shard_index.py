"""The index of a sharded dataset: parsed once, from untrusted bytes, into checked values.

It holds what a start needs: ids, lengths, languages, digests, and for each pair its row in each of three tables. The
rows themselves are in shards: those of `ids` hold the text ids and then the codes of an utterance, those of `condition`
and `emotion` one vector each. Every row has a hash here, which is compared whenever the row is read.

The index names files, byte ranges and rows. All of them are checked against each other before any is used. File names
have to be of the forms that `data/sharding.py` and a preparation write, so an index cannot name a file outside its
folder.
"""

import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors

from indextts_job.data.containers import arrays_of, header_of
from indextts_job.data.dataset import DIGEST_BYTES, Limits, SkippedSample
from indextts_job.data.texts import Bytes, Texts, stored_texts
from indextts_job.errors import DataError

INDEX = "index.safetensors"
FORMAT_VERSION = 2
ITEM_BYTES = {"float32": 4, "bfloat16": 2}
"""Types of stored vectors, with the size of a value."""
ID_BYTES = {"uint16": 2, "int32": 4}
"""Types of stored ids."""
Kind = Literal["ids", "condition", "emotion"]
KINDS: tuple[Kind, ...] = ("ids", "condition", "emotion")
VECTORS: tuple[Kind, ...] = ("condition", "emotion")
PREPARED_BY, OTHER_EMOTION = "prepared_by", "other_emotion"
"""Keys of the header that only a preparation writes."""
LARGEST_INDEX_BYTES = 2**33
_MOST = 2**40
"""Bound of row counts, sizes and byte positions: sums and products of such numbers do not overflow 64 bits."""
LARGEST_ROW_DIMENSION = 2**20
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of rows."""

    name: str
    rows: int
    size_bytes: int
    data_start: int
    """Position of the first row's first byte."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """All rows of one kind."""

    dtype: str
    """Type of the stored values; reading converts bfloat16 to float32."""
    row_shape: tuple[int, ...]
    """Shape of each row of vectors; empty for ids, whose rows have different lengths."""
    shards: tuple[Shard, ...]
    positions: npt.NDArray[np.int64] | None
    """[rows + 1] for ids, the position of each row's first byte in the bytes of all shards' rows."""

    @cached_property
    def rows(self) -> int:
        """Number of rows."""
        return sum(shard.rows for shard in self.shards)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row of vectors."""
        return ITEM_BYTES[self.dtype] * int(np.prod(self.row_shape))

    @cached_property
    def _first_rows(self) -> list[int]:
        return list(accumulate((shard.rows for shard in self.shards), initial=0))

    def place(self, row: int) -> tuple[Shard, int, int]:
        """The shard of a row, the position of the row's first byte in it, and that behind its last."""
        number = bisect_right(self._first_rows, row) - 1
        shard, first = self.shards[number], self._first_rows[number]
        if self.positions is None:
            start = shard.data_start + (row - first) * self.row_bytes
            return shard, start, start + self.row_bytes
        offset = shard.data_start - int(self.positions[first])
        return shard, offset + int(self.positions[row]), offset + int(self.positions[row + 1])

    def where(self, row: int) -> str:
        """Shard and row in it, for messages."""
        number = bisect_right(self._first_rows, row) - 1
        return f"{self.shards[number].name}, row {row - self._first_rows[number]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeFor:
    """The model that a dataset was checked for."""

    model_version: str = "2.0"
    speaker_width: int | None = None
    """Values of a speaker vector; None for latents as wide as the model."""
    code_rate: int = 50
    """Codes per second."""
    tokenizer_sha256: str = ""
    """Hash of the tokenizer's file; empty in an index that was written before it was recorded."""
    emotion: str = "prompt"
    """Whose emotion vectors it holds."""

    @classmethod
    def of(cls, limits: Limits) -> "MadeFor":
        """The model that samples are checked for with these demands."""
        version = limits.model.version
        return cls(
            model_version=version.name,
            speaker_width=version.speaker_width,
            code_rate=version.codes_per_second,
            tokenizer_sha256=limits.tokenizer_sha256,
            emotion=limits.emotion,
        )


LIKE_2_0 = MadeFor()
"""What an index says that was written when there was one version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardIndex:
    """The checked content of an index."""

    fingerprint: str
    languages: tuple[str, ...]
    skipped: tuple[SkippedSample, ...]
    notes: tuple[str, ...]
    """What was suspicious about the whole when it was checked."""
    made_for: MadeFor
    tables: Mapping[Kind, Table]
    largest: Mapping[str, int]
    """The largest id of all texts, and the largest code: the verdict of the check, so that limits are compared without
    reading the shards."""
    names: Texts
    """Ids of the pairs."""
    rows: Mapping[str, npt.NDArray[np.int32]]
    """[pairs] for each pair its row in each table, and its language."""
    lengths: Mapping[str, npt.NDArray[np.int32]]
    """[rows of ids] number of text ids, and of codes."""
    digests: Mapping[str, Bytes]
    """[rows, DIGEST_BYTES] BLAKE2b digests of texts, codes and vectors, by use: the identity of the dataset."""
    checks: Mapping[Kind, Bytes]
    """[rows, DIGEST_BYTES] xxh3 hashes of the stored bytes of each row."""
    encoders: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the tensors of the encoders that made the arrays; empty where the index does not say."""
    other_emotion: "OtherEmotion | None" = None

    def with_emotion(self, emotion: str) -> "ShardIndex":
        """The index as one of the emotion vectors of another utterance, if it knows their rows; otherwise itself."""
        other = self.other_emotion
        if other is None or emotion == self.made_for.emotion or emotion != other.emotion:
            return self
        return replace(
            self,
            fingerprint=other.fingerprint,
            made_for=replace(self.made_for, emotion=emotion),
            rows={**self.rows, "emotion": other.rows},
            other_emotion=None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherEmotion:
    """The rows of the emotion vectors that an index does not use itself, for a training that chooses them."""

    emotion: str
    fingerprint: str
    """Of the dataset with these vectors."""
    rows: npt.NDArray[np.int32]
    """[pairs] for each pair its row of emotion vectors."""


def parse_index(content: bytes, where: str) -> ShardIndex:
    """Parse an index: its hashes are verified, and its numbers are checked against each other.

    Args:
        content: The whole file.
        where: Path or URL of the file, for messages.

    Raises:
        DataError: The file is damaged, of another format, or contradicts itself.
    """
    try:
        header = header_of(content)
        version = header.get("format_version")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{where}: not an index of a sharded dataset, or damaged ({error}). Shard the dataset again."
        ) from error
    if version != FORMAT_VERSION:
        # Another format may use other types of arrays; its version is reported and nothing else of it is read.
        raise DataError(
            f"{where}: shard format {version!r:.40}, this release reads {FORMAT_VERSION}. Shard the dataset again, or "
            "install the release that wrote it."
        )
    try:
        return _checked(header, arrays_of(content, header))
    except (ValueError, LookupError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise DataError(f"{where}: damaged or not ours ({error}). Shard the dataset again.") from error


def parse_shard(entry: object, kind: Kind) -> Shard:
    """A shard from plain values.

    Raises:
        ValueError: The values are not those of a shard of this kind.
    """
    known = {entry.name for entry in fields(Shard)}
    if not isinstance(entry, Mapping) or set(entry) != known:
        raise ValueError(f"a shard of {kind} does not have the fields {', '.join(sorted(known))}")
    name = entry["name"]
    if not isinstance(name, str) or not re.fullmatch(rf"{kind}-([0-9]{{5,9}}|[0-9a-f]{{32}})\.safetensors", name):
        raise ValueError(f"{name!r:.80} is no name of a shard of {kind}")
    return Shard(
        name=name,
        rows=_whole(entry["rows"], f"rows of {name}"),
        size_bytes=_whole(entry["size_bytes"], f"size of {name}"),
        data_start=_whole(entry["data_start"], f"start of {name}"),
        sha256=_sha256(entry["sha256"], name),
    )


def _checked(header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> ShardIndex:
    names = stored_texts(arrays["id_values"], arrays["id_offsets"], "ids")
    if not len(names) or not (np.diff(arrays["id_offsets"]) > 0).all():
        raise ValueError("there are no pairs, or one without an id")
    lengths = {use: _lengths(arrays[f"{use}_lengths"], use) for use in ("text", "codes")}
    tables = _tables(header["tables"], lengths)
    languages = _texts(header["languages"], "languages")
    limits: dict[str, int] = {kind: table.rows for kind, table in tables.items()}
    limits["language"] = len(languages)
    uses: dict[str, Kind] = {"text": "ids", "codes": "ids", "condition": "condition", "emotion": "emotion"}
    return ShardIndex(
        fingerprint=_sha256(header["fingerprint"], "the dataset"),
        languages=languages,
        skipped=tuple(_skipped(entry) for entry in _sequence(header["skipped"], "skipped")),
        notes=_texts(header.get("notes", []), "notes"),
        made_for=_made_for(header),
        tables=tables,
        largest={use: _largest(header["largest"][use], use) for use in lengths},
        names=names,
        rows={name: _pairs(arrays[f"pair_{name}"], len(names), limit, name) for name, limit in limits.items()},
        lengths=lengths,
        digests={use: _hashes(arrays[f"{use}_digests"], tables[kind].rows, use) for use, kind in uses.items()},
        checks={kind: _hashes(arrays[f"{kind}_checks"], tables[kind].rows, kind) for kind in KINDS},
        encoders=_encoders(header.get(PREPARED_BY, {})),
        other_emotion=_other_emotion(header, arrays, len(names), tables["emotion"].rows),
    )


def _other_emotion(
    header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]], pairs: int, rows: int
) -> OtherEmotion | None:
    entry = header.get(OTHER_EMOTION)
    if entry is None:
        return None
    emotion, fingerprint = _texts([entry["emotion"], entry["fingerprint"]], OTHER_EMOTION)
    return OtherEmotion(
        emotion=emotion,
        fingerprint=_sha256(fingerprint, OTHER_EMOTION),
        rows=_pairs(arrays[f"pair_{OTHER_EMOTION}"], pairs, rows, "emotion"),
    )


def _encoders(prepared_by: object) -> dict[str, str]:
    """SHA-256 by name of an encoder, from what an index says of its preparation."""
    entries = prepared_by.get("encoders", {}) if isinstance(prepared_by, Mapping) else None
    if not isinstance(entries, Mapping) or not all(isinstance(name, str) for name in entries):
        raise TypeError("what it says of its preparation is no mapping of encoders")
    return {name: _sha256(value, name) for name, value in entries.items()}


def _tables(entries: Mapping[str, Any], lengths: Mapping[str, npt.NDArray[np.int32]]) -> dict[Kind, Table]:
    tables: dict[Kind, Table] = {kind: _vectors(entries[kind], kind) for kind in VECTORS}
    entry = entries["ids"]
    item_bytes = ID_BYTES[entry["dtype"]]
    if len(lengths["text"]) != len(lengths["codes"]):
        raise ValueError("texts and codes are not of the same utterances")
    sizes = (lengths["text"].astype(np.int64) + lengths["codes"]) * item_bytes
    positions = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    table = Table(dtype=entry["dtype"], row_shape=(), shards=_shards(entry, "ids"), positions=positions)
    if table.rows != len(sizes):
        raise ValueError(f"shards of {table.rows} utterances, lengths of {len(sizes)}")
    _check_sizes(table)
    return {"ids": table, **tables}


def _vectors(entry: Any, kind: Kind) -> Table:  # noqa: ANN401  # plain values
    dtype = entry["dtype"]
    if dtype not in ITEM_BYTES:
        raise ValueError(f"rows of {kind} are of type {dtype!r:.40}")
    shape = tuple(_whole(size, f"row shape of {kind}") for size in _sequence(entry["row_shape"], "row_shape"))
    if not shape or len(shape) > 2 or max(shape) > LARGEST_ROW_DIMENSION:
        raise ValueError(f"rows of {kind} have the shape {list(shape)}")
    table = Table(dtype=dtype, row_shape=shape, shards=_shards(entry, kind), positions=None)
    _check_sizes(table)
    return table


def _shards(entry: Mapping[str, Any], kind: Kind) -> tuple[Shard, ...]:
    shards = tuple(parse_shard(shard, kind) for shard in _sequence(entry["shards"], "shards"))
    if not shards:
        raise ValueError(f"there are no shards of {kind}")
    if len({shard.name for shard in shards}) < len(shards):
        raise ValueError(f"two shards of {kind} have one name")
    if sum(shard.rows for shard in shards) > 2**31 - 1:
        raise ValueError(f"the shards of {kind} have too many rows")
    return shards


def _check_sizes(table: Table) -> None:
    """Check that the rows of each shard fill it."""
    first = 0
    for shard in table.shards:
        stop = first + shard.rows
        if table.positions is None:
            size_bytes = shard.rows * table.row_bytes
        else:
            size_bytes = int(table.positions[stop] - table.positions[first])
        if shard.size_bytes != shard.data_start + size_bytes:
            raise ValueError(f"{shard.name} has {shard.size_bytes} bytes, which its {shard.rows} rows do not fill")
        first = stop


def _lengths(values: npt.NDArray[Any], use: str) -> npt.NDArray[np.int32]:
    if values.ndim != 1 or values.dtype != np.int32 or not values.size or values.min() < 1:
        raise ValueError(f"the lengths of {use} are no positive numbers")
    return values


def _pairs(rows: npt.NDArray[Any], pairs: int, limit: int, name: str) -> npt.NDArray[np.int32]:
    if rows.shape != (pairs,) or rows.dtype != np.int32:
        raise ValueError(f"pairs do not name one row of {name} each")
    if rows.min() < 0 or rows.max() >= limit:
        raise ValueError(f"pairs name rows {rows.min()} to {rows.max()} of {name}, which has {limit}")
    return rows


def _hashes(values: npt.NDArray[Any], rows: int, name: str) -> Bytes:
    if values.shape != (rows, DIGEST_BYTES) or values.dtype != np.uint8:
        raise ValueError(f"{rows} rows of {name} do not have a hash each")
    return values


def _sequence(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{what} is no list")
    return value


def _texts(value: object, what: str) -> tuple[str, ...]:
    entries = _sequence(value, what)
    if not all(isinstance(entry, str) for entry in entries):
        raise TypeError(f"{what} are no texts")
    return tuple(entries)


def _made_for(header: Mapping[str, Any]) -> MadeFor:
    # All are missing in the index of a dataset that was sharded when there was one version.
    values = {entry.name: header[entry.name] for entry in fields(MadeFor) if entry.name in header}
    made_for = MadeFor(**values)
    texts = (made_for.model_version, made_for.tokenizer_sha256, made_for.emotion)
    numbers = (made_for.code_rate, made_for.speaker_width or 1)
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise TypeError("version, speaker width, code rate or hash of the tokenizer are of the wrong type")
    return made_for


def _skipped(entry: object) -> SkippedSample:
    if not isinstance(entry, Mapping) or set(entry) != {"id", "reason"}:
        raise ValueError("a skipped sample does not have id and reason")
    name, reason = _texts([entry["id"], entry["reason"]], "id and reason of a skipped sample")
    return SkippedSample(name, reason)


def _whole(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST:
        raise ValueError(f"{what} is {value!r:.40}, expected a whole number of at least 1")
    return value


def _largest(value: object, use: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(f"the largest id of {use} is {value!r:.40}, expected a whole number")
    return value


def _sha256(value: object, what: str) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"the hash of {what} is {value!r:.80}, expected 64 hexadecimal digits")
    return value
