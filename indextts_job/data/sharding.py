"""Write a checked dataset as shards; `data/shard_index.py` describes the format.

The same input gives the same bytes. Finished shards of an interrupted conversion are kept, and the index is written
last: a sharded dataset exists exactly when its index does.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from indextts_job.data.containers import written
from indextts_job.data.dataset import (
    DIGEST_BYTES,
    USES,
    Column,
    Dataset,
    Use,
    Values,
)
from indextts_job.data.rounding import rounded
from indextts_job.data.shard_index import (
    FORMAT_VERSION,
    INDEX,
    ITEM_BYTES,
    LIKE_2_0,
    Kind,
    MadeFor,
    Shard,
    parse_index,
    parse_shard,
)
from indextts_job.data.texts import Bytes, Texts, distinct
from indextts_job.errors import ConfigError
from indextts_job.hashing import integrity_digest
from indextts_job.redaction import redacted
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.run_storage import RunStorage, StoredFile

SHARD_BYTES = 64 * 2**20
"""Approximate size of a shard, which is the unit of a node's cache."""
READERS = 32
"""Number of arrays read at a time, to hide the latency of remote sources."""
AT_A_TIME = 4096
"""Number of utterances read at a time."""
Progress = Callable[[int, int], None]
"""Called with (rows written, rows in all)."""
IDS: tuple[Use, ...] = ("text", "codes")
Largest = Mapping[Use, int]
"""The largest text id and the largest code of utterances."""
NO_IDS: Largest = {"text": 0, "codes": 0}


@dataclass(frozen=True, slots=True)
class _Distinct:
    """The distinct rows of one kind, and the samples that use them."""

    first: npt.NDArray[np.int64]
    """[rows] the first sample that uses each."""
    rows: Column
    """[samples] the row of each sample."""


def write_shards(
    dataset: Dataset,
    output: str,
    progress: Progress,
    *,
    made_for: MadeFor = LIKE_2_0,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> str:
    """Write a checked dataset as shards; finished shards of an interrupted call are kept.

    Args:
        dataset: The samples.
        output: Folder or URL; must not hold another dataset.
        progress: Called after each shard.
        made_for: The model that the samples were checked for.
        dtype: Type of the stored vectors. bfloat16 halves the bytes and rounds the values, so the fingerprint changes.
        shard_bytes: Approximate size of a shard.

    Returns:
        The fingerprint of the sharded dataset; in float32 the same as that of `dataset`.

    Raises:
        ConfigError: The output holds another dataset.
    """
    storage = open_storage(output)
    if dtype == "bfloat16":
        dataset = rounded(dataset)
    _refuse_another_dataset(storage, dataset.fingerprint)
    # Many pairs share the arrays of a prompt or a target, so each distinct one is stored once.
    digests = {use: _digests(dataset, use) for use in USES}
    found: dict[Kind, _Distinct] = {
        "condition": _Distinct(*distinct(digests["condition"])),
        "emotion": _Distinct(*distinct(digests["emotion"])),
        "ids": _Distinct(*distinct(_utterances(digests["text"], digests["codes"]))),
    }
    total = sum(len(kind.first) for kind in found.values())
    writer = _ShardWriter(dataset, storage, shard_bytes, lambda done: progress(done, total))
    tables = {
        "condition": writer.vectors("condition", found["condition"].first, digests["condition"], dtype),
        "emotion": writer.vectors("emotion", found["emotion"].first, digests["emotion"], dtype),
        "ids": writer.utterances(found["ids"].first, digests),
    }
    header = {
        "format_version": FORMAT_VERSION,
        "fingerprint": dataset.fingerprint,
        "languages": sorted(dataset.languages),
        "skipped": [asdict(sample) for sample in dataset.skipped],
        "notes": dataset.notes,
        **asdict(made_for),
        "largest": writer.largest,
        "tables": tables,
    }
    storage.write(INDEX, written(header, {**_columns(dataset, found, digests), **writer.checks}))
    return dataset.fingerprint


def _columns(
    dataset: Dataset, found: Mapping[Kind, _Distinct], digests: Mapping[Use, Bytes]
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of the index, apart from the hashes of the stored rows."""
    utterances = found["ids"].first
    return {
        **_ids(dataset).arrays("id"),
        **{f"pair_{kind}": place.rows for kind, place in found.items()},
        "pair_language": _languages(dataset),
        "text_lengths": dataset.text_lengths[utterances],
        "codes_lengths": dataset.code_lengths[utterances],
        "text_digests": digests["text"][utterances],
        "codes_digests": digests["codes"][utterances],
        "condition_digests": digests["condition"][found["condition"].first],
        "emotion_digests": digests["emotion"][found["emotion"].first],
    }


def _ids(dataset: Dataset) -> Texts:
    pieces = [part.ids.between(0, len(part)) for part in dataset.parts]
    starts = np.cumsum([0, *(len(values) for values, _ in pieces)])
    offsets = [offsets[:-1] + start for (_, offsets), start in zip(pieces, starts[:-1], strict=True)]
    return Texts(np.concatenate([values for values, _ in pieces]), np.concatenate([*offsets, starts[-1:]]))


def _languages(dataset: Dataset) -> Column:
    """[samples] the language of each, as its place among all in alphabetical order."""
    names = sorted(dataset.languages)
    columns = []
    for part in dataset.parts:
        places = [names.index(name) if name in names else 0 for name in part.languages]
        columns.append(np.array(places, np.int32)[part.language])
    return np.concatenate(columns)


def _digests(dataset: Dataset, use: Use) -> Bytes:
    """[samples, DIGEST_BYTES] of all arrays of one use."""
    return np.concatenate([part.source.digests(use, 0, len(part)) for part in dataset.parts])


def _utterances(texts: Bytes, codes: Bytes) -> Bytes:
    """[samples, 16] keys that are equal where text and codes are."""
    rows = np.stack([distinct(texts)[1], distinct(codes)[1]], axis=1).astype(np.int64)
    return rows.view(np.uint8)


def _refuse_another_dataset(storage: RunStorage, wanted: str) -> None:
    try:
        index = parse_index(storage.read(INDEX), f"{storage.url}/{INDEX}")
    except FileNotFoundError:
        return
    if index.fingerprint != wanted:
        raise ConfigError(f"{redacted(storage.url)} holds another sharded dataset. Give another output folder.")


class _ShardWriter:
    """Writes rows in their order. A note beside each shard identifies its rows, so that a later call can keep it."""

    def __init__(
        self, dataset: Dataset, storage: RunStorage, shard_bytes: int, progress: Callable[[int], None]
    ) -> None:
        self._dataset = dataset
        self._storage = storage
        self._shard_bytes = shard_bytes
        self._progress = progress
        self._done = 0
        self.checks: dict[str, Bytes] = {}
        """For each kind written so far, [rows, DIGEST_BYTES] hashes of the stored bytes of each row."""
        self.largest: Largest = NO_IDS
        """The largest ids of all utterances written so far."""

    def vectors(self, kind: Kind, first: npt.NDArray[np.int64], digests: Bytes, dtype: str) -> dict[str, Any]:
        """Write all vectors of one kind.

        Args:
            kind: Their kind.
            first: A sample that uses each.
            digests: [samples, DIGEST_BYTES].
            dtype: Type of the stored values.

        Returns:
            The table for the index.
        """
        shape = self._read(kind, int(first[0])).shape  # type: ignore[arg-type]
        row_bytes = ITEM_BYTES[dtype] * int(np.prod(shape))
        cuts = range(0, len(first), max(1, self._shard_bytes // row_bytes))

        def rows(samples: Sequence[int]) -> tuple[list[Values], Largest]:
            values = self._in_parallel(lambda sample: self._read(kind, sample), samples)  # type: ignore[arg-type]
            return ([_halves(value) for value in values] if dtype == "bfloat16" else values), NO_IDS

        shards = self._write(kind, dtype, first, cuts, digests[first], rows)
        return {"dtype": dtype, "row_shape": list(shape), "shards": shards}

    def utterances(self, first: npt.NDArray[np.int64], digests: Mapping[Use, Bytes]) -> dict[str, Any]:
        """Write the text ids and codes of all utterances, as `vectors`."""
        parts = self._dataset.parts
        bound = max(part.source.largest(use) for part in parts for use in IDS)
        dtype = np.dtype(np.uint16 if bound <= np.iinfo(np.uint16).max else np.int32)
        lengths = (self._dataset.text_lengths[first] + self._dataset.code_lengths[first]) * dtype.itemsize
        # A shard ends where the next multiple of its size is reached.
        numbers = np.cumsum(lengths, dtype=np.int64) // self._shard_bytes
        cuts = [0, *(np.flatnonzero(numbers[1:] > numbers[:-1]) + 1).tolist()]

        def rows(samples: Sequence[int]) -> tuple[list[Values], Largest]:
            texts, codes = (self._in_parallel(partial(self._read, use), samples) for use in IDS)
            joined = [np.concatenate(pair).astype(dtype) for pair in zip(texts, codes, strict=True)]
            found = {use: int(max(map(np.max, values))) for use, values in zip(IDS, (texts, codes), strict=True)}
            return joined, found

        both = np.concatenate([digests["text"][first], digests["codes"][first]], axis=1)
        return {"dtype": dtype.name, "shards": self._write("ids", dtype.name, first, cuts, both, rows)}

    def _read(self, use: Use, sample: int) -> Values:
        part, place = self._dataset.place(sample)
        return part.source.read_one(use, place, lambda _index: "sharding")

    def _in_parallel(self, read: Callable[[int], Values], samples: Sequence[int]) -> list[Values]:
        with ThreadPoolExecutor(max_workers=READERS) as pool:
            values: list[Values] = []
            for start in range(0, len(samples), AT_A_TIME):
                values += pool.map(read, samples[start : start + AT_A_TIME])
        return values

    def _write(  # the rows with what is known of them
        self,
        kind: Kind,
        dtype: str,
        first: npt.NDArray[np.int64],
        cuts: Sequence[int],
        digests: Bytes,
        rows: Callable[[Sequence[int]], tuple[list[Values], Largest]],
    ) -> list[dict[str, Any]]:
        there = self._storage.list("")
        shards, checks = [], []
        for number, (start, stop) in enumerate(zip(cuts, [*cuts[1:], len(first)], strict=True)):
            name = f"{kind}-{number:05d}.safetensors"
            # With their type: values that bfloat16 holds exactly have one digest in both types.
            identity = hashlib.sha256(dtype.encode() + digests[start:stop].tobytes()).hexdigest()
            note = self._finished(kind, name, identity, there) if f"{name}.json" in there else None
            note = note or self._write_shard(kind, name, identity, *rows(first[start:stop].tolist()))
            shards.append(asdict(note.shard))
            checks.append(np.frombuffer(note.checks, np.uint8).reshape(-1, DIGEST_BYTES))
            self.largest = {use: max(self.largest[use], note.largest[use]) for use in IDS}
            self._done += stop - start
            self._progress(self._done)
        self.checks[f"{kind}_checks"] = np.concatenate(checks)
        return shards

    def _finished(self, kind: Kind, name: str, rows: str, there: Mapping[str, StoredFile]) -> "_Note | None":
        """The note of a shard of an earlier call, if it is complete and holds these rows.

        Args:
            kind: Kind of its rows.
            name: Its file name.
            rows: Hash of the digests of its rows.
            there: The files of the folder.
        """
        try:
            note = _parse_note(json.loads(self._storage.read(f"{name}.json")), kind)
        except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
            return None  # the note is damaged or not ours: the shard is written again
        same = note.rows_sha256 == rows and note.shard.name == name
        whole = name in there and there[name].size_bytes == note.shard.size_bytes
        return note if same and whole else None

    def _write_shard(  # the rows with what is known of them
        self, kind: Kind, name: str, rows: str, values: Sequence[Values], largest: Largest
    ) -> "_Note":
        content = container(kind, values)
        shard = Shard(
            name=name,
            rows=len(values),
            size_bytes=len(content),
            data_start=8 + int.from_bytes(content[:8], "little"),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        checks = b"".join(integrity_digest(value.data) for value in values)
        note = _Note(rows, shard, checks, largest)
        # The note comes after the shard: a note without its shard would be believed.
        self._storage.write(name, content)
        self._storage.write(f"{name}.json", json.dumps({**asdict(note), "checks": checks.hex()}, indent=1).encode())
        return note


@dataclass(frozen=True, slots=True)
class _Note:
    """What is known of a finished shard."""

    rows_sha256: str
    """Hash of the digests of its rows."""
    shard: Shard
    checks: bytes
    """Hashes of the stored bytes of its rows."""
    largest: Largest


def _parse_note(entry: Mapping[str, Any], kind: Kind) -> _Note:
    shard, checks = parse_shard(entry["shard"], kind), bytes.fromhex(entry["checks"])
    largest: Largest = {use: int(entry["largest"][use]) for use in IDS}
    if len(checks) != shard.rows * DIGEST_BYTES:
        raise ValueError("not every row has a hash")
    return _Note(entry["rows_sha256"], shard, checks, largest)


def container(kind: Kind, values: Sequence[Values]) -> bytes:
    """A safetensors file with rows end to end; the rows of bfloat16 vectors are given as their upper halves.

    Args:
        kind: Name of its only tensor.
        values: Rows of one type.
    """
    # numpy has no bfloat16, so the file is written here: length of the header, header, bytes.
    ragged = kind == "ids"
    count = sum(value.size for value in values)
    shape = [count] if ragged else [len(values), *values[0].shape]
    dtype = {"uint16": "U16" if ragged else "BF16", "int32": "I32", "float32": "F32"}[values[0].dtype.name]
    data = b"".join(value.tobytes() for value in values)
    header = json.dumps({kind: {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    header += b" " * (-len(header) % 8)  # the format aligns the data to 8 bytes
    return len(header).to_bytes(8, "little") + header + data


def _halves(values: Values) -> Values:
    """The upper halves of float32 values; exact, as the values are rounded to bfloat16."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)
