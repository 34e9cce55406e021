"""Read sharded datasets.

`index.safetensors` holds all ids, the table of pairs and a digest of every row; it is read as a whole. The shards
`condition-NNNNN.safetensors` and `emotion-NNNNN.safetensors` hold each vector once, however many pairs use it, and a
row is one byte range. `data/shard_index.py` describes the format, `data/sharding.py` writes it.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from indextts_job.data.dataset import Dataset, Entry, Ids, Limits, SkippedSample, Vector
from indextts_job.data.manifest import is_manifest
from indextts_job.data.shard_index import INDEX, LARGEST_INDEX_BYTES, Shard, ShardIndex, Table, parse_index
from indextts_job.errors import AccessRefusedError, DataError, findings_message
from indextts_job.model.batch import Floats
from indextts_job.model.config import CONDITION_LATENTS
from indextts_job.redaction import redacted
from indextts_job.storage import files


class ReadRange(Protocol):
    """Reads bytes [start, stop) of a shard; with `fresh` from the source, without any local copy."""

    def __call__(self, shard: Shard, start: int, stop: int, *, fresh: bool = False) -> memoryview:
        """The bytes."""


def is_sharded(url: str) -> bool:
    """Whether a manifest argument names a sharded dataset: its folder, or its index."""
    if is_manifest(url):  # no request for the usual case
        return False
    return url.endswith(INDEX) or files.exists(f"{url.rstrip('/')}/{INDEX}")


def open_shards(
    url: str, limits: Limits, reader: Callable[[str], ReadRange]
) -> tuple[list[Entry], list[SkippedSample]]:
    """The samples of a sharded dataset.

    Args:
        url: The dataset's folder or its index.
        limits: The sizes that model and tokenizer allow; the whole index is compared with them.
        reader: Gives the function that reads ranges of the shards in a folder.

    Raises:
        DataError: The index is damaged, or the dataset does not fit model and tokenizer.
    """
    folder = url.removesuffix(f"/{INDEX}").rstrip("/")
    where = f"{folder}/{INDEX}"
    try:
        index = parse_index(files.read_bytes(where, LARGEST_INDEX_BYTES), redacted(where))
    except FileNotFoundError:
        raise DataError(f"{redacted(where)}: not found. Expected the folder that `indextts-job shard` wrote.") from None
    _demand_limits(index.arrays, index.tables, limits, where)
    _demand_shards(folder, index.tables)
    entries = _entries(index, where, folder, reader(folder))
    # The fingerprint is part of every checkpoint. A difference would otherwise be noticed only when a run resumes.
    if Dataset(entries).fingerprint != index.fingerprint:
        raise DataError(f"{where}: its content does not have the fingerprint it names. Shard the dataset again.")
    return entries, list(index.skipped)


def _entries(index: ShardIndex, where: str, folder: str, read_range: ReadRange) -> list[Entry]:
    arrays = index.arrays
    ids = {name: list(_ids(arrays, name)) for name in ("text", "codes")}
    vectors = {name: list(_vectors(arrays, name, table, folder, read_range)) for name, table in index.tables.items()}
    return [
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


def _demand_shards(folder: str, tables: Mapping[str, Table]) -> None:
    """Refuse a dataset whose shards are missing or truncated, which training would notice only hours later."""
    try:
        there = files.sizes(folder)
    except AccessRefusedError:
        return  # some accounts may read a bucket and not list it: then a missing shard is noticed when it is read
    expected = {shard.name: shard.size_bytes for table in tables.values() for shard in table.shards}
    findings = [
        f"{name}: {f'{there[name]} bytes' if name in there else 'missing'}, expected {size} bytes"
        for name, size in expected.items()
        if there.get(name) != size
    ]
    if findings:
        advice = "Run `indextts-job shard` again with the same arguments: it writes what is missing."
        raise DataError(findings_message(f"{folder}: the sharded dataset is not whole", findings, advice))


def _demand_limits(
    arrays: Mapping[str, npt.NDArray[Any]], tables: Mapping[str, Table], limits: Limits, where: str
) -> None:
    model = limits.model
    findings = [
        *_ids_beyond(arrays, "text", limits.text_pieces, model.max_text_tokens),
        *_ids_beyond(arrays, "codes", model.number_codes, model.max_mel_tokens),
    ]
    for name, shape in (("condition", (CONDITION_LATENTS, model.model_dim)), ("emotion", (model.model_dim,))):
        if tables[name].row_shape != shape:
            findings.append(f"{name}: rows of shape {list(tables[name].row_shape)}, expected {list(shape)}")
    if findings:
        advice = "Use the tokenizer and model configuration that the dataset was made for."
        raise DataError(findings_message(f"{where} does not fit", findings, advice))


def _ids_beyond(arrays: Mapping[str, npt.NDArray[Any]], name: str, count: int, longest: int) -> Iterator[str]:
    """Ids outside 0 .. count - 1, and rows that are too long. All rows are compared at once, in numpy."""
    values = arrays[f"{name}_values"]
    if values.min() < 0 or values.max() >= count:
        yield f"{name}: ids from {values.min()} to {values.max()}, expected 0 … {count - 1}"
    most = int(np.diff(arrays[f"{name}_offsets"]).max())
    if most > longest:
        yield f"{name}: an utterance of {most}, the model's limit is {longest}"


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
