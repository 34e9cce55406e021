"""A sharded dataset: an index of everything small, and shards of everything large, all safetensors.

`index.safetensors` holds all ids, the table of pairs and a digest of every row; it is fetched whole. Vectors lie once
each in `condition-NNNNN.safetensors` and `emotion-NNNNN.safetensors`, however many pairs use them, and a row is one
byte range. The same input gives the same bytes. The index is written last: a dataset exists exactly when it does.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from indextts_job import files
from indextts_job.checkpoint.remote import open_storage
from indextts_job.checkpoint.storage import RunStorage
from indextts_job.data.batch import Floats
from indextts_job.data.dataset import (
    DIGEST_BYTES,
    Dataset,
    Entry,
    Ids,
    Limits,
    SkippedSample,
    Vector,
    read_vector,
)
from indextts_job.errors import ConfigError, DataError, findings_message
from indextts_job.model.config import CONDITION_LATENTS

INDEX = "index.safetensors"
METADATA = "indextts_job"
FORMAT_VERSION = 1
SHARD_BYTES = 64 * 2**20
"""Size of a shard, about: one download of a cold node, one unit of its cache."""
READERS = 32
"""Vectors read at a time while sharding; hides the latency of remote sources."""
Progress = Callable[[int, int], None]


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

    row_shape: tuple[int, ...]
    rows_per_shard: int
    shards: tuple[Shard, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one float32 row."""
        return 4 * int(np.prod(self.row_shape))

    def place(self, row: int) -> tuple[Shard, int]:
        """Shard of a row, and its first byte in it."""
        shard = self.shards[row // self.rows_per_shard]
        return shard, shard.data_start + (row % self.rows_per_shard) * self.row_bytes


class ReadRange(Protocol):
    """Reads bytes [start, stop) of a shard; `fresh` means past any copy."""

    def __call__(self, shard: Shard, start: int, stop: int, *, fresh: bool = False) -> bytes:
        """The bytes."""


def write_shards(dataset: Dataset, output: str, progress: Progress, *, shard_bytes: int = SHARD_BYTES) -> str:
    """Write a checked dataset as shards.

    Shards that an interrupted earlier call has finished are kept.

    Args:
        dataset: What to write.
        output: Folder or URL; must not hold another dataset.
        progress: Told how many rows are written.
        shard_bytes: Size of a shard, about.

    Returns:
        The dataset's fingerprint, the same in both forms.

    Raises:
        ConfigError: The output holds another dataset.
    """
    storage = open_storage(output)
    _refuse_another_dataset(storage, dataset.fingerprint)
    conditions, condition_rows = _distinct([entry.condition for entry in dataset.entries])
    emotions, emotion_rows = _distinct([entry.emotion for entry in dataset.entries])
    texts, text_rows = _distinct([entry.text_ids for entry in dataset.entries])
    codes, code_rows = _distinct([entry.codes for entry in dataset.entries])
    total = len(conditions) + len(emotions)
    width = len(read_vector(dataset.entries[0].emotion, "the first sample"))
    writer = _ShardWriter(storage, shard_bytes, lambda done: progress(done, total))
    tables = {
        "condition": writer.write("condition", conditions, (CONDITION_LATENTS, width)),
        "emotion": writer.write("emotion", emotions, (width,)),
    }
    arrays: dict[str, npt.NDArray[Any]] = {
        "pair_text": text_rows,
        "pair_codes": code_rows,
        "pair_condition": condition_rows,
        "pair_emotion": emotion_rows,
        **_ragged("text", [ids.values for ids in texts]),
        **_ragged("codes", [ids.values for ids in codes]),
        **_ragged("id", [np.frombuffer(entry.id.encode(), np.uint8) for entry in dataset.entries]),
    }
    for name, things in (("text", texts), ("codes", codes), ("condition", conditions), ("emotion", emotions)):
        digests = np.frombuffer(b"".join(thing.digest for thing in things), np.uint8)
        arrays[f"{name}_digests"] = digests.reshape(len(things), DIGEST_BYTES)
    languages = sorted(dataset.languages)
    arrays["pair_language"] = np.array([languages.index(entry.language) for entry in dataset.entries], np.int32)
    header = {
        "format_version": FORMAT_VERSION,
        "fingerprint": dataset.fingerprint,
        "languages": languages,
        "skipped": [asdict(sample) for sample in dataset.skipped],
        "tables": {name: asdict(table) for name, table in tables.items()},
        "tensors_sha256": _tensors_hash(safetensors.numpy.save(arrays)),
    }
    text = json.dumps(header, sort_keys=True)
    # The header vouches for the tensors, and the hash in front of it for the header.
    metadata = {METADATA: f"{hashlib.sha256(text.encode()).hexdigest()} {text}"}
    storage.write(INDEX, safetensors.numpy.save(arrays, metadata))
    return dataset.fingerprint


def _refuse_another_dataset(storage: RunStorage, wanted: str) -> None:
    try:
        header, _ = _parse_index(storage.read(INDEX), f"{storage.url}/{INDEX}")
    except FileNotFoundError:
        return
    if header["fingerprint"] != wanted:
        raise ConfigError(f"{storage.url} holds another sharded dataset. Give another output folder.")


class _ShardWriter:
    """Writes rows in their order; a note beside each shard says which rows it holds, so that it can be kept."""

    def __init__(self, storage: RunStorage, shard_bytes: int, progress: Callable[[int], None]) -> None:
        self._storage = storage
        self._shard_bytes = shard_bytes
        self._progress = progress
        self._done = 0

    def write(self, kind: str, vectors: Sequence[Vector], row_shape: tuple[int, ...]) -> Table:
        """Write all rows of one kind."""
        row_bytes = 4 * int(np.prod(row_shape))
        per_shard = max(1, self._shard_bytes // row_bytes)
        there = self._storage.list("")
        shards = []
        for number, start in enumerate(range(0, len(vectors), per_shard)):
            part = vectors[start : start + per_shard]
            name = f"{kind}-{number:05d}.safetensors"
            rows = hashlib.sha256(b"".join(vector.digest for vector in part)).hexdigest()
            known = self._finished(name, rows) if f"{name}.json" in there else None
            if known is None or name not in there or there[name].size_bytes != known.size_bytes:
                known = self._write_shard(kind, name, rows, part)
            shards.append(known)
            self._done += len(part)
            self._progress(self._done)
        return Table(row_shape=row_shape, rows_per_shard=per_shard, shards=tuple(shards))

    def _finished(self, name: str, rows: str) -> Shard | None:
        try:
            note = json.loads(self._storage.read(f"{name}.json"))
        except (FileNotFoundError, ValueError):
            return None
        return Shard(**note["shard"]) if note.get("rows_sha256") == rows else None

    def _write_shard(self, kind: str, name: str, rows: str, part: Sequence[Vector]) -> Shard:
        with ThreadPoolExecutor(max_workers=READERS) as pool:
            values = list(pool.map(lambda vector: read_vector(vector, "sharding"), part))
        content = safetensors.numpy.save({kind: np.stack(values)})
        shard = Shard(
            name=name,
            rows=len(part),
            size_bytes=len(content),
            data_start=8 + int.from_bytes(content[:8], "little"),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        self._storage.write(name, content)
        note = {"rows_sha256": rows, "shard": asdict(shard)}
        self._storage.write(f"{name}.json", json.dumps(note, indent=1).encode())
        return shard


def _distinct(things: Sequence[Any]) -> tuple[list[Any], npt.NDArray[np.int32]]:
    """The distinct things by content, in order of first use, and for every given one its place among them."""
    places: dict[bytes, int] = {}
    kept: list[Any] = []
    rows = np.empty(len(things), np.int32)
    for index, thing in enumerate(things):
        if thing.digest not in places:
            places[thing.digest] = len(kept)
            kept.append(thing)
        rows[index] = places[thing.digest]
    return kept, rows


def _ragged(name: str, arrays: Sequence[npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Arrays of different lengths as one, with offsets [n + 1]; values in the smallest of uint8, int16, int32."""
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int64)
    joined = np.concatenate(arrays)
    if joined.dtype != np.uint8:
        joined = joined.astype(np.int16 if joined.max() <= np.iinfo(np.int16).max else np.int32)
    return {f"{name}_values": joined, f"{name}_offsets": offsets}


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
        header, arrays = _parse_index(files.read_bytes(where), where)
    except FileNotFoundError:
        raise DataError(f"{where}: not found. Expected the folder that `indextts-job shard` wrote.") from None
    tables = {name: _table(entry) for name, entry in header["tables"].items()}
    _demand_limits(arrays, tables, limits, where)
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


def _parse_index(content: bytes, where: str) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
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
    if _tensors_hash(content) != header["tensors_sha256"]:
        raise DataError(f"{where}: damaged, its bytes do not have the hash it names. Shard the dataset again.")
    return header, arrays


def _tensors_hash(content: bytes) -> str:
    """Hash of a safetensors file without its metadata: names, types, places and bytes of its tensors."""
    start = 8 + int.from_bytes(content[:8], "little")
    places = {name: entry for name, entry in json.loads(content[8:start]).items() if name != "__metadata__"}
    digest = hashlib.sha256(json.dumps(places, sort_keys=True).encode())
    digest.update(memoryview(content)[start:])
    return digest.hexdigest()


def _table(entry: Mapping[str, Any]) -> Table:
    return Table(
        row_shape=tuple(entry["row_shape"]),
        rows_per_shard=entry["rows_per_shard"],
        shards=tuple(Shard(**shard) for shard in entry["shards"]),
    )


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
    return np.frombuffer(content, np.float32).reshape(table.row_shape)
