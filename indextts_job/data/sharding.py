"""Write a checked dataset as shards; `data/shard_index.py` describes the format.

The same input gives the same bytes. Finished shards of an interrupted conversion are kept, and the index is written
last: a sharded dataset exists exactly when its index does.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from indextts_job.data.dataset import DIGEST_BYTES, Dataset, Vector, content_digest, read_vector
from indextts_job.data.shard_index import (
    FORMAT_VERSION,
    INDEX,
    ITEM_BYTES,
    METADATA,
    Kind,
    Shard,
    Table,
    parse_index,
    parse_shard,
    tensors_hash,
)
from indextts_job.errors import ConfigError
from indextts_job.model.batch import Floats
from indextts_job.model.config import CONDITION_LATENTS
from indextts_job.redaction import redacted
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.run_storage import RunStorage, StoredFile

SHARD_BYTES = 64 * 2**20
"""Approximate size of a shard, which is the unit of a node's cache."""
READERS = 32
"""Number of vectors read at a time, to hide the latency of remote sources."""
Progress = Callable[[int, int], None]
"""Called with (rows written, rows in all)."""


def write_shards(
    dataset: Dataset, output: str, progress: Progress, *, dtype: str = "float32", shard_bytes: int = SHARD_BYTES
) -> str:
    """Write a checked dataset as shards; finished shards of an interrupted call are kept.

    Args:
        dataset: The samples.
        output: Folder or URL; must not hold another dataset.
        progress: Called after each shard.
        dtype: Type of the stored vectors. bfloat16 halves the bytes and rounds the values, so the fingerprint changes.
        shard_bytes: Approximate size of a shard.

    Returns:
        The fingerprint of the sharded dataset; in float32 the same as that of `dataset`.

    Raises:
        ConfigError: The output holds another dataset.
    """
    storage = open_storage(output)
    if dtype == "bfloat16":
        dataset = _rounded(dataset)
    _refuse_another_dataset(storage, dataset.fingerprint)
    # Many pairs share the arrays of a prompt or a target, so each distinct one is stored once.
    conditions, condition_rows = _distinct([entry.condition for entry in dataset.entries])
    emotions, emotion_rows = _distinct([entry.emotion for entry in dataset.entries])
    total = len(conditions) + len(emotions)
    width = len(read_vector(dataset.entries[0].emotion, "the first sample"))
    writer = _ShardWriter(storage, dtype, shard_bytes, lambda done: progress(done, total))
    tables = {
        "condition": writer.write("condition", conditions, (CONDITION_LATENTS, width)),
        "emotion": writer.write("emotion", emotions, (width,)),
    }
    arrays = {"pair_condition": condition_rows, "pair_emotion": emotion_rows, **_small_arrays(dataset)}
    arrays |= {"condition_digests": _digests(conditions), "emotion_digests": _digests(emotions)}
    storage.write(INDEX, _index(dataset, tables, arrays))
    return dataset.fingerprint


def _small_arrays(dataset: Dataset) -> dict[str, npt.NDArray[Any]]:
    """The arrays that the index holds itself: texts, codes, ids and languages."""
    texts, text_rows = _distinct([entry.text_ids for entry in dataset.entries])
    codes, code_rows = _distinct([entry.codes for entry in dataset.entries])
    languages = sorted(dataset.languages)
    return {
        "pair_text": text_rows,
        "pair_codes": code_rows,
        "pair_language": np.array([languages.index(entry.language) for entry in dataset.entries], np.int32),
        **_ragged("text", [ids.values for ids in texts]),
        **_ragged("codes", [ids.values for ids in codes]),
        **_ragged("id", [np.frombuffer(entry.id.encode(), np.uint8) for entry in dataset.entries]),
        "text_digests": _digests(texts),
        "codes_digests": _digests(codes),
    }


def _index(dataset: Dataset, tables: Mapping[str, Table], arrays: dict[str, npt.NDArray[Any]]) -> bytes:
    header = {
        "format_version": FORMAT_VERSION,
        "fingerprint": dataset.fingerprint,
        "languages": sorted(dataset.languages),
        "skipped": [asdict(sample) for sample in dataset.skipped],
        "tables": {name: asdict(table) for name, table in tables.items()},
        "tensors_sha256": tensors_hash(safetensors.numpy.save(arrays)),
    }
    text = json.dumps(header, sort_keys=True)
    # The header has the hash of the tensors, and the text before it the hash of the header.
    metadata = {METADATA: f"{hashlib.sha256(text.encode()).hexdigest()} {text}"}
    return bytes(safetensors.numpy.save(arrays, metadata))


def _digests(things: Sequence[Any]) -> npt.NDArray[np.uint8]:
    """[things, DIGEST_BYTES] the digests of arrays."""
    joined = np.frombuffer(b"".join(thing.digest for thing in things), np.uint8)
    return joined.reshape(len(things), DIGEST_BYTES)


def _refuse_another_dataset(storage: RunStorage, wanted: str) -> None:
    try:
        index = parse_index(storage.read(INDEX), f"{storage.url}/{INDEX}")
    except FileNotFoundError:
        return
    if index.fingerprint != wanted:
        raise ConfigError(f"{redacted(storage.url)} holds another sharded dataset. Give another output folder.")


class _ShardWriter:
    """Writes rows in their order. A note beside each shard identifies its rows, so that a later call can keep it."""

    def __init__(self, storage: RunStorage, dtype: str, shard_bytes: int, progress: Callable[[int], None]) -> None:
        self._storage = storage
        self._dtype = dtype
        self._shard_bytes = shard_bytes
        self._progress = progress
        self._done = 0

    def write(self, kind: Kind, vectors: Sequence[Vector], row_shape: tuple[int, ...]) -> Table:
        """Write all rows of one kind."""
        row_bytes = ITEM_BYTES[self._dtype] * int(np.prod(row_shape))
        per_shard = max(1, self._shard_bytes // row_bytes)
        there = self._storage.list("")
        shards = []
        for number, start in enumerate(range(0, len(vectors), per_shard)):
            part = vectors[start : start + per_shard]
            name = f"{kind}-{number:05d}.safetensors"
            rows = hashlib.sha256(b"".join(vector.digest for vector in part)).hexdigest()
            finished = self._finished(kind, name, rows, there) if f"{name}.json" in there else None
            shards.append(finished or self._write_shard(kind, name, rows, part))
            self._done += len(part)
            self._progress(self._done)
        return Table(dtype=self._dtype, row_shape=row_shape, rows_per_shard=per_shard, shards=tuple(shards))

    def _finished(self, kind: Kind, name: str, rows: str, there: Mapping[str, StoredFile]) -> Shard | None:
        """The shard of an earlier call, if it is complete and holds these rows.

        Args:
            kind: Kind of its vectors.
            name: Its file name.
            rows: Hash of the digests of its rows.
            there: The files of the folder.
        """
        try:
            note = json.loads(self._storage.read(f"{name}.json"))
            shard = parse_shard(note["shard"], kind)
            same = note["rows_sha256"] == rows and shard.name == name
        except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
            return None  # the note is damaged or not ours: the shard is written again
        whole = name in there and there[name].size_bytes == shard.size_bytes
        return shard if same and whole else None

    def _write_shard(self, kind: Kind, name: str, rows: str, part: Sequence[Vector]) -> Shard:
        with ThreadPoolExecutor(max_workers=READERS) as pool:
            values = list(pool.map(lambda vector: read_vector(vector, "sharding"), part))
        content = self._container(kind, np.stack(values))
        shard = Shard(
            name=name,
            rows=len(part),
            size_bytes=len(content),
            data_start=8 + int.from_bytes(content[:8], "little"),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        # The note comes after the shard: a note without its shard would be believed.
        self._storage.write(name, content)
        note = {"rows_sha256": rows, "shard": asdict(shard)}
        self._storage.write(f"{name}.json", json.dumps(note, indent=1).encode())
        return shard

    def _container(self, kind: str, values: Floats) -> bytes:
        if self._dtype == "float32":
            return bytes(safetensors.numpy.save({kind: values}))
        # numpy has no bfloat16, so the safetensors file is written here: length of the header, header, bytes. The
        # values are rounded already, so dropping the lower halves of the float32 values is exact.
        halves = (values.view(np.uint32) >> 16).astype(np.uint16)
        entry = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [0, halves.nbytes]}
        header = json.dumps({kind: entry}).encode()
        header += b" " * (-len(header) % 8)  # the format aligns the data to 8 bytes
        return len(header).to_bytes(8, "little") + header + halves.tobytes()


def _rounded(dataset: Dataset) -> Dataset:
    """The dataset with its vectors rounded to bfloat16. All of them are read once, for their new digests."""

    def through(vector: Vector) -> Vector:
        def load(fresh: bool) -> Floats:  # noqa: FBT001
            return _to_bfloat16(vector.load(fresh))

        rounded = _to_bfloat16(read_vector(vector, "sharding"))
        return Vector(vector.where, content_digest(rounded), load)

    every = [vector for entry in dataset.entries for vector in (entry.condition, entry.emotion)]
    distinct = list({vector.digest: vector for vector in every}.values())
    with ThreadPoolExecutor(max_workers=READERS) as pool:
        places = dict(zip((vector.digest for vector in distinct), pool.map(through, distinct), strict=True))
    entries = [
        replace(entry, condition=places[entry.condition.digest], emotion=places[entry.emotion.digest])
        for entry in dataset.entries
    ]
    return Dataset(entries, dataset.skipped)


def _to_bfloat16(values: Floats) -> Floats:
    """The values rounded to the nearest bfloat16, ties to even, as float32."""
    bits = values.view(np.uint32)
    # Half of a unit in the last place, less one bit unless that place is odd. The vectors are finite: NaN is refused.
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def _distinct(things: Sequence[Any]) -> tuple[list[Any], npt.NDArray[np.int32]]:
    """The distinct arrays by content, in order of first use, and for each given array its index among them."""
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
    """Arrays of different lengths as one array and offsets [n + 1]; ids as int16 if they fit, otherwise as int32."""
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int64)
    joined = np.concatenate(arrays)
    if joined.dtype != np.uint8:
        joined = joined.astype(np.int16 if joined.max() <= np.iinfo(np.int16).max else np.int32)
    return {f"{name}_values": joined, f"{name}_offsets": offsets}
