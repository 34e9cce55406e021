"""The format of a sharded dataset, and its reading: an index of everything small, shards of everything large.

`index.safetensors` holds all ids, the table of pairs and a digest of every row; it is fetched whole. Vectors lie once
each in `condition-NNNNN.safetensors` and `emotion-NNNNN.safetensors`, however many pairs use them, and a row is one
byte range. `data/sharding.py` writes it.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from indextts_job import files
from indextts_job.data.batch import Floats
from indextts_job.data.dataset import (
    Dataset,
    Entry,
    Ids,
    Limits,
    SkippedSample,
    Vector,
)
from indextts_job.errors import AccessRefusedError, DataError, findings_message
from indextts_job.model.config import CONDITION_LATENTS

INDEX = "index.safetensors"
METADATA = "indextts_job"
FORMAT_VERSION = 1
ITEM_BYTES = {"float32": 4, "bfloat16": 2}


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


class ReadRange(Protocol):
    """Reads bytes [start, stop) of a shard; `fresh` means past any copy."""

    def __call__(self, shard: Shard, start: int, stop: int, *, fresh: bool = False) -> memoryview:
        """The bytes."""


def is_sharded(url: str) -> bool:
    """Whether a manifest argument names a sharded dataset: its folder, or its index."""
    if url.endswith((".jsonl", ".json")):
        return False
    return url.endswith(INDEX) or files.exists(f"{url.rstrip('/')}/{INDEX}")


def open_shards(
    url: str, limits: Limits, reader: Callable[[str], ReadRange]
) -> tuple[list[Entry], list[SkippedSample]]:
    """The samples of a sharded dataset.

    Args:
        url: Its folder or its index.
        limits: What model and tokenizer allow; the whole index is compared with them.
        reader: Makes the function that reads ranges of the shards in a folder.

    Raises:
        DataError: The index is damaged, or holds what model or tokenizer do not allow.
    """
    folder = url.removesuffix(f"/{INDEX}").rstrip("/")
    where = f"{folder}/{INDEX}"
    try:
        header, arrays = parse_index(files.read_bytes(where), where)
    except FileNotFoundError:
        raise DataError(f"{where}: not found. Expected the folder that `indextts-job shard` wrote.") from None
    tables = {name: _table(entry) for name, entry in header["tables"].items()}
    _demand_limits(arrays, tables, limits, where)
    _demand_shards(folder, tables)
    read_range = reader(folder)
    ids = {name: list(_ids(arrays, name)) for name in ("text", "codes")}
    vectors = {name: list(_vectors(arrays, name, table, folder, read_range)) for name, table in tables.items()}
    names = [bytes(name).decode() for name in _slices(arrays, "id")]
    entries = [
        Entry(
            id=name,
            language=header["languages"][arrays["pair_language"][i]],
            origin=f"{where}, pair {i}",
            text_ids=ids["text"][arrays["pair_text"][i]],
            codes=ids["codes"][arrays["pair_codes"][i]],
            condition=vectors["condition"][arrays["pair_condition"][i]],
            emotion=vectors["emotion"][arrays["pair_emotion"][i]],
        )
        for i, name in enumerate(names)
    ]
    if Dataset(entries).fingerprint != header["fingerprint"]:
        raise DataError(f"{where}: its content does not have the fingerprint it names. Shard the dataset again.")
    return entries, [SkippedSample(**sample) for sample in header["skipped"]]


def parse_index(content: bytes, where: str) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Header and arrays of an index, every byte verified.

    Raises:
        DataError: It is damaged, or of another format.
    """
    try:
        size = int.from_bytes(content[:8], "little")
        digest, _, text = json.loads(content[8 : 8 + size])["__metadata__"][METADATA].partition(" ")
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            raise ValueError("its header does not have the hash in front of it")
        header = json.loads(text)
        arrays = safetensors.numpy.load(content)
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise DataError(f"{where}: not an index of a sharded dataset, or damaged ({error}).") from error
    if header.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{where}: shard format {header.get('format_version')!r}, this release reads {FORMAT_VERSION}. Shard the "
            "dataset again, or install the release that wrote it."
        )
    if tensors_hash(content) != header["tensors_sha256"]:
        raise DataError(f"{where}: damaged, its bytes do not have the hash it names. Shard the dataset again.")
    return header, arrays


def tensors_hash(content: bytes) -> str:
    """Hash of a safetensors file without its metadata: names, types, places and bytes of its tensors."""
    start = 8 + int.from_bytes(content[:8], "little")
    places = {name: entry for name, entry in json.loads(content[8:start]).items() if name != "__metadata__"}
    digest = hashlib.sha256(json.dumps(places, sort_keys=True).encode())
    digest.update(memoryview(content)[start:])
    return digest.hexdigest()


def _table(entry: Mapping[str, Any]) -> Table:
    return Table(
        dtype=entry["dtype"],
        row_shape=tuple(entry["row_shape"]),
        rows_per_shard=entry["rows_per_shard"],
        shards=tuple(Shard(**shard) for shard in entry["shards"]),
    )


def _demand_shards(folder: str, tables: Mapping[str, Table]) -> None:
    """Find out before hours of work that a shard is missing."""
    try:
        there = files.sizes(folder)
    except AccessRefusedError:
        return  # a bucket may be read and not listed; then a missing shard is found when it is needed
    findings = [
        f"{shard.name}: {'missing' if shard.name not in there else f'{there[shard.name]} bytes'}, "
        f"expected {shard.size_bytes} bytes"
        for table in tables.values()
        for shard in table.shards
        if there.get(shard.name) != shard.size_bytes
    ]
    if findings:
        advice = "Run `indextts-job shard` again with the same arguments: it writes what is missing."
        raise DataError(findings_message(f"{folder}: the sharded dataset is not whole", findings, advice))


def _demand_limits(
    arrays: Mapping[str, npt.NDArray[Any]], tables: Mapping[str, Table], limits: Limits, where: str
) -> None:
    model = limits.model
    findings = []
    for name, count, longest in (
        ("text", limits.text_pieces, model.max_text_tokens),
        ("codes", model.number_codes, model.max_mel_tokens),
    ):
        values = arrays[f"{name}_values"]
        if values.min() < 0 or values.max() >= count:
            findings.append(f"{name}: ids from {values.min()} to {values.max()}, expected 0 … {count - 1}")
        most = int(np.diff(arrays[f"{name}_offsets"]).max())
        if most > longest:
            findings.append(f"{name}: an utterance of {most}, the model's limit is {longest}")
    for name, shape in (("condition", (CONDITION_LATENTS, model.model_dim)), ("emotion", (model.model_dim,))):
        if tables[name].row_shape != shape:
            findings.append(f"{name}: rows of shape {list(tables[name].row_shape)}, expected {list(shape)}")
    if findings:
        advice = "Use the tokenizer and model configuration that the dataset was made for."
        raise DataError(findings_message(f"{where} does not fit", findings, advice))


def _slices(arrays: Mapping[str, npt.NDArray[Any]], name: str) -> Iterator[npt.NDArray[Any]]:
    offsets, values = arrays[f"{name}_offsets"], arrays[f"{name}_values"]
    for start, stop in itertools.pairwise(offsets):
        yield values[start:stop]


def _ids(arrays: Mapping[str, npt.NDArray[Any]], name: str) -> Iterator[Ids]:
    for values, digest in zip(_slices(arrays, name), arrays[f"{name}_digests"], strict=True):
        yield Ids(values, digest.tobytes())


def _vectors(
    arrays: Mapping[str, npt.NDArray[Any]], name: str, table: Table, folder: str, read_range: ReadRange
) -> Iterator[Vector]:
    for row, digest in enumerate(arrays[f"{name}_digests"]):
        shard, start = table.place(row)
        load = partial(_load_row, read_range, shard, start, table)
        yield Vector(f"{folder}/{shard.name}, row {row % table.rows_per_shard}", digest.tobytes(), load)


def _load_row(read_range: ReadRange, shard: Shard, start: int, table: Table, fresh: bool) -> Floats:  # noqa: FBT001
    content = read_range(shard, start, start + table.row_bytes, fresh=fresh)
    if table.dtype == "bfloat16":
        # A bfloat16 is the upper half of a float32.
        return (np.frombuffer(content, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(table.row_shape)
    return np.frombuffer(content, np.float32).reshape(table.row_shape)
