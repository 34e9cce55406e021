"""The index of a sharded dataset: parsed once, from untrusted bytes, into checked values.

The index names files, byte ranges and rows. All of them are checked against each other before any is used. File names
have to be of the form that `data/sharding.py` writes, so an index cannot name a file outside its folder.
"""

import hashlib
import itertools
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All rows of one kind of vector."""

    dtype: str
    """Type of the stored rows, float32 or bfloat16; reading converts them to float32."""
    row_shape: tuple[int, ...]
    rows_per_shard: int
    shards: tuple[Shard, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return ITEM_BYTES[self.dtype] * int(np.prod(self.row_shape))

    def place(self, row: int) -> tuple[Shard, int]:
        """The shard of a row, and the position of the row's first byte in it."""
        shard = self.shards[row // self.rows_per_shard]
        return shard, shard.data_start + (row % self.rows_per_shard) * self.row_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardIndex:
    """The checked content of an index."""

    fingerprint: str
    languages: tuple[str, ...]
    skipped: tuple[SkippedSample, ...]
    tables: Mapping[str, Table]
    """The tables of rows by kind of vector."""
    arrays: Mapping[str, npt.NDArray[Any]]
    """For each pair its row in each table (`pair_…` [pairs]), and for each table its values, offsets [rows + 1] and
    digests [rows, DIGEST_BYTES]."""
    names: tuple[str, ...]
    """Ids of the pairs."""


def parse_index(content: bytes, where: str) -> ShardIndex:
    """Parse an index: its hashes are verified, and its numbers are checked against each other.

    Args:
        content: The whole file.
        where: Path or URL of the file, for messages.

    Raises:
        DataError: The file is damaged, of another format, or contradicts itself.
    """
    try:
        header = _header(content)
        version = header.get("format_version")
        # Another format may use other types of tensors; its version is reported and nothing else of it is read.
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


def _header(content: bytes) -> dict[str, Any]:
    """Our header, which is one text in the metadata of the safetensors file, with its hash in front."""
    size = int.from_bytes(content[:8], "little")
    if size > min(len(content) - 8, _LONGEST_HEADER_BYTES):
        raise ValueError(f"{len(content)} bytes do not hold a header of {size}")
    digest, _, text = json.loads(content[8 : 8 + size])["__metadata__"][METADATA].partition(" ")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise ValueError("its header does not have the hash in front of it")
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError(f"its header is a {type(header).__name__}")
    return header


def tensors_hash(content: bytes) -> str:
    """SHA-256 of a safetensors file without its metadata: names, types, positions and bytes of its tensors."""
    # Without the metadata, because the hash is itself stored there.
    start = 8 + int.from_bytes(content[:8], "little")
    places = {name: entry for name, entry in json.loads(content[8:start]).items() if name != "__metadata__"}
    digest = hashlib.sha256(json.dumps(places, sort_keys=True).encode())
    digest.update(memoryview(content)[start:])
    return digest.hexdigest()


def parse_shard(entry: object, kind: Kind) -> Shard:
    """A shard from plain values.

    Raises:
        ValueError: The values are not those of a shard of this kind.
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
    rows |= {name: _checked_rows(arrays, name) for name in ("text", "codes", "id")}
    languages = _texts(header["languages"], "languages")
    for name in ("text", "codes", *KINDS):
        if arrays[f"{name}_digests"].shape != (rows[name], DIGEST_BYTES):
            raise ValueError(f"{rows[name]} rows of {name} do not have a digest each")
        _check_pairs(arrays[f"pair_{name}"], rows["id"], rows[name], name)
    _check_pairs(arrays["pair_language"], rows["id"], len(languages), "language")
    return ShardIndex(
        fingerprint=_sha256(header["fingerprint"], "the dataset"),
        languages=languages,
        skipped=tuple(_skipped(entry) for entry in _sequence(header["skipped"], "skipped")),
        tables=tables,
        arrays=arrays,
        names=_names(arrays),
    )


def _names(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[str, ...]:
    offsets, values = arrays["id_offsets"].tolist(), arrays["id_values"].tobytes()
    return tuple(values[start:stop].decode() for start, stop in itertools.pairwise(offsets))


def _table(entry: Any, kind: Kind) -> Table:  # noqa: ANN401  # plain values
    dtype = entry["dtype"]
    if dtype not in ITEM_BYTES:
        raise ValueError(f"rows of {kind} are of type {dtype!r:.40}")
    shape = tuple(_whole(size, f"row shape of {kind}") for size in _sequence(entry["row_shape"], "row_shape"))
    if not shape or len(shape) > 2 or max(shape) > LARGEST_ROW_DIMENSION:
        raise ValueError(f"rows of {kind} have the shape {list(shape)}")
    table = Table(
        dtype=dtype,
        row_shape=shape,
        rows_per_shard=_whole(entry["rows_per_shard"], f"rows per shard of {kind}"),
        shards=tuple(parse_shard(shard, kind) for shard in _sequence(entry["shards"], "shards")),
    )
    _check_shards(table, kind)
    return table


def _check_shards(table: Table, kind: Kind) -> None:
    _check_row_counts(table)
    for shard in table.shards:
        if shard.size_bytes != shard.data_start + shard.rows * table.row_bytes:
            raise ValueError(f"{shard.name} has {shard.size_bytes} bytes, which its {shard.rows} rows do not fill")
    if len({shard.name for shard in table.shards}) < len(table.shards):
        raise ValueError(f"two shards of {kind} have one name")


def _check_row_counts(table: Table) -> None:
    # `Table.place` computes the shard of a row, so all shards but the last must be full.
    wrong = [shard for shard in table.shards[:-1] if shard.rows != table.rows_per_shard]
    wrong += [shard for shard in table.shards[-1:] if shard.rows > table.rows_per_shard]
    if wrong:
        raise ValueError(f"{wrong[0].name} has {wrong[0].rows} rows, expected {table.rows_per_shard}")


def _checked_rows(arrays: Mapping[str, npt.NDArray[Any]], name: str) -> int:
    """The number of rows of different lengths, after their offsets were checked against the values."""
    values, offsets = arrays[f"{name}_values"], arrays[f"{name}_offsets"]
    if not _is_list_of_integers(values) or offsets.ndim != 1 or offsets.dtype != np.int64:
        raise ValueError(f"{name}: values and offsets are no lists of integers")
    if name == "id" and values.dtype != np.uint8:
        raise ValueError("ids are no bytes")
    if not _cuts(offsets, len(values)):
        raise ValueError(f"{name}: offsets do not cut {len(values)} values into rows")
    return len(offsets) - 1


def _is_list_of_integers(array: npt.NDArray[Any]) -> bool:
    return array.ndim == 1 and array.dtype.kind in "iu"


def _cuts(offsets: npt.NDArray[np.int64], num_values: int) -> bool:
    """Whether offsets [rows + 1] cut values into at least one row, of which none is empty."""
    covers = len(offsets) >= 2 and offsets[0] == 0 and offsets[-1] == num_values
    return bool(covers and (offsets[1:] > offsets[:-1]).all())


def _check_pairs(rows: npt.NDArray[Any], pairs: int, limit: int, name: str) -> None:
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
