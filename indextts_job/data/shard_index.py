"""The index of a sharded dataset: parsed once, from bytes that anybody may have written, into checked values.

It names files, bytes and rows; everything that it says is compared with everything else before any of it is used. A
name is one of the two forms that `data/sharding.py` gives, so an index leads to no other file.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from indextts_job.data.dataset import DIGEST_BYTES, SkippedSample
from indextts_job.errors import DataError

INDEX = "index.safetensors"
METADATA = "indextts_job"
FORMAT_VERSION = 1
ITEM_BYTES = {"float32": 4, "bfloat16": 2}
Kind = Literal["condition", "emotion"]
KINDS: tuple[Kind, ...] = ("condition", "emotion")
LARGEST_INDEX_BYTES = 2**33
_LONGEST_HEADER_BYTES = 2**30
_MOST = 2**40
"""Of rows, bytes and sizes: sums and products of such numbers overflow nothing."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of rows."""

    name: str
    rows: int
    size_bytes: int
    data_start: int
    """Byte of the first row."""
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All rows of one kind of vector."""

    dtype: str
    """float32 or bfloat16: how rows are stored; they are always handed over as float32."""
    row_shape: tuple[int, ...]
    rows_per_shard: int
    shards: tuple[Shard, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return ITEM_BYTES[self.dtype] * int(np.prod(self.row_shape))

    def place(self, row: int) -> tuple[Shard, int]:
        """Shard of a row, and its first byte in it."""
        shard = self.shards[row // self.rows_per_shard]
        return shard, shard.data_start + (row % self.rows_per_shard) * self.row_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardIndex:
    """What an index says."""

    fingerprint: str
    languages: tuple[str, ...]
    skipped: tuple[SkippedSample, ...]
    tables: Mapping[str, Table]
    """By kind of vector."""
    arrays: Mapping[str, npt.NDArray[Any]]
    """Per pair its row in each table (`pair_…` [pairs]), and per table values, offsets [rows + 1] and digests."""
    names: tuple[str, ...]
    """Ids of the pairs."""


def parse_index(content: bytes, where: str) -> ShardIndex:
    """An index from its bytes, every byte verified and every number compared with the others.

    Args:
        content: The file.
        where: Its path or URL, for messages.

    Raises:
        DataError: It is damaged, of another format, or contradicts itself.
    """
    try:
        size = int.from_bytes(content[:8], "little")
        if size > min(len(content) - 8, _LONGEST_HEADER_BYTES):
            raise ValueError(f"{len(content)} bytes do not hold a header of {size}")
        digest, _, text = json.loads(content[8 : 8 + size])["__metadata__"][METADATA].partition(" ")
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            raise ValueError("its header does not have the hash in front of it")
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError(f"its header is a {type(header).__name__}")
        version = header.get("format_version")
        arrays = safetensors.numpy.load(content) if version == FORMAT_VERSION else {}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, safetensors.SafetensorError) as error:
        raise DataError(f"{where}: not an index of a sharded dataset, or damaged ({error}).") from error
    if version != FORMAT_VERSION:
        raise DataError(
            f"{where}: shard format {version!r:.40}, this release reads {FORMAT_VERSION}. Shard the dataset again, or "
            "install the release that wrote it."
        )
    try:
        if tensors_hash(content) != header["tensors_sha256"]:
            raise ValueError("its bytes do not have the hash that it names")
        return _checked(header, arrays)
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{where}: damaged or not ours ({error}). Shard the dataset again.") from error


def tensors_hash(content: bytes) -> str:
    """Hash of a safetensors file without its metadata: names, types, places and bytes of its tensors."""
    start = 8 + int.from_bytes(content[:8], "little")
    places = {name: entry for name, entry in json.loads(content[8:start]).items() if name != "__metadata__"}
    digest = hashlib.sha256(json.dumps(places, sort_keys=True).encode())
    digest.update(memoryview(content)[start:])
    return digest.hexdigest()


def parse_shard(entry: object, kind: Kind) -> Shard:
    """A shard from plain values.

    Raises:
        ValueError: They are none.
    """
    known = {field.name for field in fields(Shard)}
    if not isinstance(entry, Mapping) or set(entry) != known:
        raise ValueError(f"a shard of {kind} does not have the fields {', '.join(sorted(known))}")
    name = entry["name"]
    if not isinstance(name, str) or not re.fullmatch(rf"{kind}-[0-9]{{5,9}}\.safetensors", name):
        raise ValueError(f"{name!r:.80} is no name of a shard of {kind}")
    return Shard(
        name=name,
        rows=_whole(entry["rows"], f"rows of {name}"),
        size_bytes=_whole(entry["size_bytes"], f"size of {name}"),
        data_start=_whole(entry["data_start"], f"start of {name}"),
        sha256=_sha256(entry["sha256"], name),
    )


def _checked(header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> ShardIndex:
    tables: dict[str, Table] = {kind: _table(header["tables"][kind], kind) for kind in KINDS}
    rows = {kind: sum(shard.rows for shard in table.shards) for kind, table in tables.items()}
    for name in ("text", "codes", "id"):
        rows[name] = _check_ragged(arrays, name)
    for name in ("text", "codes", *KINDS):
        if arrays[f"{name}_digests"].shape != (rows[name], DIGEST_BYTES):
            raise ValueError(f"{rows[name]} rows of {name} do not have a digest each")
    languages = _texts(header["languages"], "languages")
    for name, limit in (*((name, rows[name]) for name in ("text", "codes", *KINDS)), ("language", len(languages))):
        _check_rows(arrays[f"pair_{name}"], rows["id"], limit, name)
    offsets, values = arrays["id_offsets"].tolist(), arrays["id_values"].tobytes()
    return ShardIndex(
        fingerprint=_sha256(header["fingerprint"], "the dataset"),
        languages=languages,
        skipped=tuple(_skipped(entry) for entry in _sequence(header["skipped"], "skipped")),
        tables=tables,
        arrays=arrays,
        names=tuple(values[offsets[i] : offsets[i + 1]].decode() for i in range(rows["id"])),
    )


def _table(entry: Any, kind: Kind) -> Table:  # noqa: ANN401  # plain values
    dtype = entry["dtype"]
    if dtype not in ITEM_BYTES:
        raise ValueError(f"rows of {kind} are of type {dtype!r:.40}")
    shape = tuple(_whole(size, f"row shape of {kind}") for size in _sequence(entry["row_shape"], "row_shape"))
    if not shape or len(shape) > 2 or max(shape) > 2**20:
        raise ValueError(f"rows of {kind} have the shape {list(shape)}")
    table = Table(
        dtype=dtype,
        row_shape=shape,
        rows_per_shard=_whole(entry["rows_per_shard"], f"rows per shard of {kind}"),
        shards=tuple(parse_shard(shard, kind) for shard in _sequence(entry["shards"], "shards")),
    )
    for place, shard in enumerate(table.shards):
        last = place == len(table.shards) - 1
        if shard.rows != table.rows_per_shard and not (last and shard.rows < table.rows_per_shard):
            raise ValueError(f"{shard.name} has {shard.rows} rows, expected {table.rows_per_shard}")
        if shard.size_bytes != shard.data_start + shard.rows * table.row_bytes:
            raise ValueError(f"{shard.name} has {shard.size_bytes} bytes, which its {shard.rows} rows do not fill")
    if len({shard.name for shard in table.shards}) < len(table.shards):
        raise ValueError(f"two shards of {kind} have one name")
    return table


def _check_ragged(arrays: Mapping[str, npt.NDArray[Any]], name: str) -> int:
    """Compare offsets with values; gives the number of rows, of which none is empty."""
    values, offsets = arrays[f"{name}_values"], arrays[f"{name}_offsets"]
    if values.ndim != 1 or values.dtype.kind not in "iu" or offsets.ndim != 1 or offsets.dtype != np.int64:
        raise ValueError(f"{name}: values and offsets are no lists of integers")
    if name == "id" and values.dtype != np.uint8:
        raise ValueError("ids are no bytes")
    if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(values) or (offsets[1:] <= offsets[:-1]).any():
        raise ValueError(f"{name}: offsets do not cut {len(values)} values into rows")
    return len(offsets) - 1


def _check_rows(rows: npt.NDArray[Any], pairs: int, limit: int, name: str) -> None:
    if rows.shape != (pairs,) or rows.dtype.kind not in "iu":
        raise ValueError(f"pairs do not name one row of {name} each")
    if rows.min() < 0 or rows.max() >= limit:
        raise ValueError(f"pairs name rows {rows.min()} to {rows.max()} of {name}, which has {limit}")


def _sequence(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{what} is no list")
    return value


def _texts(value: object, what: str) -> tuple[str, ...]:
    entries = _sequence(value, what)
    if not all(isinstance(entry, str) for entry in entries):
        raise TypeError(f"{what} are no texts")
    return tuple(entries)


def _skipped(entry: object) -> SkippedSample:
    if not isinstance(entry, Mapping) or set(entry) != {"id", "reason"}:
        raise ValueError("a skipped sample does not have id and reason")
    name, reason = _texts([entry["id"], entry["reason"]], "id and reason of a skipped sample")
    return SkippedSample(name, reason)


def _whole(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST:
        raise ValueError(f"{what} is {value!r:.40}, expected a whole number of at least 1")
    return value


def _sha256(value: object, what: str) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"the hash of {what} is {value!r:.80}, expected 64 hexadecimal digits")
    return value
