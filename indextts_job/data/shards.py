"""Sharded datasets, read: an index of everything small, shards of everything large.

`index.safetensors` holds all ids, the table of pairs and a digest of every row; it is fetched whole. Vectors lie once
each in `condition-NNNNN.safetensors` and `emotion-NNNNN.safetensors`, however many pairs use them, and a row is one
byte range. `data/shard_index.py` is the format, `data/sharding.py` writes it.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from indextts_job.data.dataset import Dataset, Entry, Ids, Limits, SkippedSample, Vector
from indextts_job.data.manifest import is_manifest
from indextts_job.data.shard_index import INDEX, LARGEST_INDEX_BYTES, Shard, Table, parse_index
from indextts_job.errors import AccessRefusedError, DataError, findings_message
from indextts_job.model.batch import Floats
from indextts_job.model.config import CONDITION_LATENTS
from indextts_job.redaction import redacted
from indextts_job.storage import files


class ReadRange(Protocol):
    """Reads bytes [start, stop) of a shard; `fresh` means past any copy."""

    def __call__(self, shard: Shard, start: int, stop: int, *, fresh: bool = False) -> memoryview:
        """The bytes."""


def is_sharded(url: str) -> bool:
    """Whether a manifest argument names a sharded dataset: its folder, or its index."""
    if is_manifest(url):
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
        index = parse_index(files.read_bytes(where, LARGEST_INDEX_BYTES), redacted(where))
    except FileNotFoundError:
        raise DataError(f"{redacted(where)}: not found. Expected the folder that `indextts-job shard` wrote.") from None
    arrays, tables = index.arrays, index.tables
    _demand_limits(arrays, tables, limits, where)
    _demand_shards(folder, tables)
    read_range = reader(folder)
    ids = {name: list(_ids(arrays, name)) for name in ("text", "codes")}
    vectors = {name: list(_vectors(arrays, name, table, folder, read_range)) for name, table in tables.items()}
    entries = [
        Entry(
            id=name,
            language=index.languages[arrays["pair_language"][i]],
            origin=f"{where}, pair {i}",
            text_ids=ids["text"][arrays["pair_text"][i]],
            codes=ids["codes"][arrays["pair_codes"][i]],
            condition=vectors["condition"][arrays["pair_condition"][i]],
            emotion=vectors["emotion"][arrays["pair_emotion"][i]],
        )
        for i, name in enumerate(index.names)
    ]
    if Dataset(entries).fingerprint != index.fingerprint:
        raise DataError(f"{where}: its content does not have the fingerprint it names. Shard the dataset again.")
    return entries, list(index.skipped)


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
