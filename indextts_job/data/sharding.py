"""Write a checked dataset as shards (`data/shard_index.py` describes them).

The same input gives the same bytes. What an interrupted conversion has finished is kept, and the index is written
last: a sharded dataset exists exactly when its index does.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
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
from indextts_job.storage.run_storage import RunStorage

SHARD_BYTES = 64 * 2**20
"""Size of a shard, about: one download of a cold node, one unit of its cache."""
READERS = 32
"""Vectors read at a time while sharding; hides the latency of remote sources."""
Progress = Callable[[int, int], None]
"""Called with (rows written, rows in all)."""


def write_shards(
    dataset: Dataset, output: str, progress: Progress, *, dtype: str = "float32", shard_bytes: int = SHARD_BYTES
) -> str:
    """Write a checked dataset as shards.

    Shards that an interrupted earlier call has finished are kept.

    Args:
        dataset: What to write.
        output: Folder or URL; must not hold another dataset.
        progress: Told how many rows are written.
        dtype: How vectors are stored. bfloat16 halves the bytes and rounds: another dataset, with its own fingerprint.
        shard_bytes: Size of a shard, about.

    Returns:
        The fingerprint; in float32 the same as that of the dataset.

    Raises:
        ConfigError: The output holds another dataset.
    """
    storage = open_storage(output)
    if dtype == "bfloat16":
        dataset = _rounded(dataset)
    _refuse_another_dataset(storage, dataset.fingerprint)
    conditions, condition_rows = _distinct([entry.condition for entry in dataset.entries])
    emotions, emotion_rows = _distinct([entry.emotion for entry in dataset.entries])
    texts, text_rows = _distinct([entry.text_ids for entry in dataset.entries])
    codes, code_rows = _distinct([entry.codes for entry in dataset.entries])
    total = len(conditions) + len(emotions)
    width = len(read_vector(dataset.entries[0].emotion, "the first sample"))
    writer = _ShardWriter(storage, dtype, shard_bytes, lambda done: progress(done, total))
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
        "tensors_sha256": tensors_hash(safetensors.numpy.save(arrays)),
    }
    text = json.dumps(header, sort_keys=True)
    # The header vouches for the tensors, and the hash in front of it for the header.
    metadata = {METADATA: f"{hashlib.sha256(text.encode()).hexdigest()} {text}"}
    storage.write(INDEX, safetensors.numpy.save(arrays, metadata))
    return dataset.fingerprint


def _refuse_another_dataset(storage: RunStorage, wanted: str) -> None:
    try:
        index = parse_index(storage.read(INDEX), f"{storage.url}/{INDEX}")
    except FileNotFoundError:
        return
    if index.fingerprint != wanted:
        raise ConfigError(f"{redacted(storage.url)} holds another sharded dataset. Give another output folder.")


class _ShardWriter:
    """Writes rows in their order; a note beside each shard says which rows it holds, so that it can be kept."""

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
            known = self._finished(kind, name, rows) if f"{name}.json" in there else None
            if known is None or name not in there or there[name].size_bytes != known.size_bytes:
                known = self._write_shard(kind, name, rows, part)
            shards.append(known)
            self._done += len(part)
            self._progress(self._done)
        return Table(dtype=self._dtype, row_shape=row_shape, rows_per_shard=per_shard, shards=tuple(shards))

    def _finished(self, kind: Kind, name: str, rows: str) -> Shard | None:
        try:
            note = json.loads(self._storage.read(f"{name}.json"))
            shard = parse_shard(note["shard"], kind)
            return shard if note["rows_sha256"] == rows and shard.name == name else None
        except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
            return None  # damaged, or not ours: the shard is written again

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
        self._storage.write(name, content)
        note = {"rows_sha256": rows, "shard": asdict(shard)}
        self._storage.write(f"{name}.json", json.dumps(note, indent=1).encode())
        return shard

    def _container(self, kind: str, values: Floats) -> bytes:
        if self._dtype == "float32":
            return bytes(safetensors.numpy.save({kind: values}))
        halves = (values.view(np.uint32) >> 16).astype(np.uint16)  # exact: the values are rounded already
        # numpy has no bfloat16, so the container is written here: length of the header, header, bytes.
        entry = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [0, halves.nbytes]}
        header = json.dumps({kind: entry}).encode()
        header += b" " * (-len(header) % 8)
        return len(header).to_bytes(8, "little") + header + halves.tobytes()


def _rounded(dataset: Dataset) -> Dataset:
    """The dataset as it is after its vectors went through bfloat16; reads all of them once for their digests."""

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
    """Rounded to the nearest bfloat16, ties to even, as float32."""
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


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
