"""Read sharded datasets.

`index.safetensors` is read as a whole. The shards `ids-NNNNN.safetensors`, `condition-NNNNN.safetensors` and
`emotion-NNNNN.safetensors` hold each utterance and each vector once, however many pairs use it, and a row is one byte
range. `data/shard_index.py` describes the format, `data/sharding.py` writes it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from indextts_job.data.dataset import (
    Arrays,
    Dataset,
    Limits,
    Owner,
    Part,
    SkippedSample,
    Use,
    language_rows,
    verified,
)
from indextts_job.data.manifest_source import is_manifest
from indextts_job.data.shard_index import (
    INDEX,
    KINDS,
    LARGEST_INDEX_BYTES,
    VECTORS,
    Kind,
    Shard,
    ShardIndex,
    Table,
    parse_index,
)
from indextts_job.data.texts import Bytes
from indextts_job.errors import AccessRefusedError, DataError, findings_message
from indextts_job.hashing import integrity_digest
from indextts_job.model.batch import Floats
from indextts_job.model.config import GPTConfig
from indextts_job.redaction import redacted
from indextts_job.storage import files

READERS = 32
"""Number of rows requested at a time, to hide the latency of a bucket."""


class ReadRange(Protocol):
    """Reads bytes [start, stop) of a shard."""

    def here(self, shard: Shard, start: int, stop: int) -> memoryview | None:
        """The bytes if they are on this node, without any wait; otherwise None."""

    def soon(self, shard: Shard) -> bool:
        """Whether the shard comes to this node so soon that waiting for it is better than a request."""

    def __call__(self, shard: Shard, start: int, stop: int, *, fresh: bool = False) -> memoryview:
        """The bytes; with `fresh` from the source, without any local copy.

        Raises:
            FileNotFoundError: The shard is gone.
            ValueError: The shard is shorter.
        """


def is_sharded(url: str) -> bool:
    """Whether a manifest argument names a sharded dataset: its folder, or its index."""
    if is_manifest(url):  # no request for the usual case
        return False
    return url.endswith(INDEX) or files.exists(f"{url.rstrip('/')}/{INDEX}")


def open_shards(
    url: str, limits: Limits, reader: Callable[[str], ReadRange]
) -> tuple[Part, Sequence[SkippedSample], Sequence[str]]:
    """The samples of a sharded dataset, those left out of it, and what is suspicious about the whole.

    Args:
        url: The dataset's folder, or an index in it.
        limits: The sizes that model and tokenizer allow; the verdict in the index is compared with them.
        reader: Gives the function that reads ranges of the shards in a folder.

    Raises:
        DataError: The index is damaged, or the dataset does not fit model and tokenizer.
    """
    folder, name = _parted(url)
    where = f"{folder}/{name}"
    try:
        index = parse_index(files.read_bytes(where, LARGEST_INDEX_BYTES), redacted(where))
    except FileNotFoundError:
        raise DataError(f"{redacted(where)}: not found. Expected the folder that `indextts-job shard` wrote.") from None
    index = index.with_emotion(limits.emotion)
    _demand_limits(index, limits, where)
    _demand_shards(folder, index.tables)
    part = shard_part(index, folder, reader(folder), limits.model)
    # The fingerprint is part of every checkpoint. A difference would otherwise be noticed only when a run resumes.
    if Dataset([part]).fingerprint != index.fingerprint:
        raise DataError(f"{where}: its content does not have the fingerprint it names. Shard the dataset again.")
    return part, index.skipped, index.notes


def _parted(url: str) -> tuple[str, str]:
    """The folder of a sharded dataset, and the name of its index: several datasets may share the shards of a folder."""
    if not url.endswith(INDEX):
        return url.rstrip("/"), INDEX
    folder, _, name = url.rpartition("/")
    return folder or ".", name


def shard_part(index: ShardIndex, folder: str, read: ReadRange, model: GPTConfig) -> Part:
    """The samples of a sharded dataset.

    Args:
        index: Its index.
        folder: Path or URL, for messages.
        read: Reads ranges of the shards.
        model: The model, which may have a row for each language.

    Raises:
        DataError: The model has rows for languages, and not for one of these.
    """
    try:
        language_numbers = language_rows(index.languages, model)
    except ValueError as error:
        raise DataError(f"{redacted(folder)}/{INDEX}: {error}. Shard the dataset again.") from error
    rows = index.rows["ids"]
    return Part(
        ids=index.names,
        languages=index.languages,
        language=index.rows["language"],
        language_rows=language_numbers,
        text_lengths=index.lengths["text"][rows],
        code_lengths=index.lengths["codes"][rows],
        encoders=index.encoders,
        source=ShardSource(index, folder, read),
    )


class ShardSource:
    """See `dataset.Source`."""

    def __init__(self, index: ShardIndex, folder: str, read: ReadRange) -> None:
        self._index = index
        self._folder = folder
        self.reader = read
        self._tables = {kind: _Rows(index.tables[kind], index.checks[kind], folder, read) for kind in KINDS}
        self._pool: ThreadPoolExecutor | None = None

    def origin(self, index: int) -> str:
        """See `dataset.Source`."""
        return f"{redacted(self._folder)}/{INDEX}, pair {index}"

    def place(self, use: Use, index: int) -> tuple[Shard, int, int]:
        """The shard of an array, the position of its row's first byte in it, and that behind the last."""
        kind = _kind(use)
        return self._tables[kind].place(int(self._index.rows[kind][index]))

    def digests(self, use: Use, start: int, stop: int) -> Bytes:
        """See `dataset.Source`."""
        return self._index.digests[use][self._index.rows[_kind(use)][start:stop]]

    def largest(self, use: Use) -> int:
        """See `dataset.Source`."""
        return self._index.largest[use]

    def read(self, indices: Sequence[int], owner: Owner) -> Sequence[Arrays]:
        """See `dataset.Source`."""
        places = np.asarray(indices, np.int64)
        rows = {kind: self._index.rows[kind][places].tolist() for kind in KINDS}
        found = {kind: list(map(self._tables[kind].here, rows[kind])) for kind in KINDS}
        missing = [(kind, slot) for kind in KINDS for slot, content in enumerate(found[kind]) if content is None]

        def load(place: tuple[Kind, int]) -> memoryview:
            kind, slot = place
            return self._tables[kind].read(rows[kind][slot], owner(indices[slot]))

        if missing:
            # Only rows that need a request are handed to threads. The others are waited for here, one after another.
            soon = [(kind, slot) for kind, slot in missing if self._tables[kind].soon(rows[kind][slot])]
            for (kind, slot), content in self._loaded(missing, soon, load):
                found[kind][slot] = content
        return self._arrays(rows, found, owner, indices)

    def _loaded(
        self,
        missing: Sequence[tuple[Kind, int]],
        soon: Sequence[tuple[Kind, int]],
        load: Callable[[tuple[Kind, int]], memoryview],
    ) -> Iterator[tuple[tuple[Kind, int], memoryview]]:
        """The missing rows as they come; those that are on their way are not asked for again."""
        known = set(soon)
        rest = [place for place in missing if place not in known]
        requested = self._threads().map(load, rest)
        yield from zip(soon, map(load, soon), strict=True)
        yield from zip(rest, requested, strict=True)

    def read_one(self, use: Use, index: int, owner: Owner) -> Any:  # noqa: ANN401  # ids or a vector
        """See `dataset.Source`."""
        kind = _kind(use)
        row = int(self._index.rows[kind][index])
        content = self._tables[kind].read(row, owner(index))
        if kind != "ids":
            return self._tables[kind].vector(content)
        values, cut = self._tables["ids"].integers(content), self._index.lengths["text"][row]
        return values[:cut] if use == "text" else values[cut:]

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=READERS, thread_name_prefix="samples")
        return self._pool

    def _arrays(
        self,
        rows: Mapping[Kind, Sequence[int]],
        found: Mapping[Kind, Sequence[Any]],
        owner: Owner,
        indices: Sequence[int],
    ) -> Sequence[Arrays]:
        cuts = self._index.lengths["text"][rows["ids"]].tolist()
        integers = list(map(self._tables["ids"].integers, found["ids"]))
        texts = [values[:cut] for values, cut in zip(integers, cuts, strict=True)]
        codes = [values[cut:] for values, cut in zip(integers, cuts, strict=True)]
        for use, values in (("text", texts), ("codes", codes)):
            self._demand_verdict(use, values, owner, indices)
        conditions, emotions = (map(self._tables[kind].vector, found[kind]) for kind in VECTORS)
        return list(zip(texts, codes, conditions, emotions, strict=True))

    def _demand_verdict(self, use: str, values: Sequence[Any], owner: Owner, indices: Sequence[int]) -> None:
        """Refuse ids beyond those that the index says it has, which were compared with the model's limits.

        A damaged row has another hash; only an index that lies comes here.
        """
        # A negative number is a large one without a sign. All rows are compared at once.
        joined = np.concatenate(values) if values else np.zeros(1, np.uint16)
        if joined.view(f"u{joined.itemsize}").max() > self._index.largest[use]:
            wrong = next(i for i, one in enumerate(values) if one.min() < 0 or one.max() > self._index.largest[use])
            raise DataError(
                f"{owner(indices[wrong])}: {use} beyond {self._index.largest[use]}, the largest that its index names. "
                "Shard the dataset again."
            )


def _kind(use: Use) -> Kind:
    """The table that has the arrays of a use."""
    return "ids" if use in ("text", "codes") else use  # type: ignore[return-value]


class _Rows:
    """The rows of one table, each compared with its hash when it is read."""

    def __init__(self, table: Table, checks: Bytes, folder: str, read: ReadRange) -> None:
        self._table, self._checks, self._folder, self._read = table, checks, folder, read
        self._dtype = np.dtype({"uint16": np.uint16, "int32": np.int32}.get(table.dtype, np.float32))

    def place(self, row: int) -> tuple[Shard, int, int]:
        """See `Table.place`."""
        return self._table.place(row)

    def here(self, row: int) -> memoryview | None:
        """The bytes of a row if they are on this node and whole."""
        content = self._read.here(*self._table.place(row))
        return content if content is not None and self._fits(row, content) else None

    def soon(self, row: int) -> bool:
        """See `ReadRange.soon`."""
        return self._read.soon(self._table.place(row)[0])

    def read(self, row: int, owner: str) -> memoryview:
        """The bytes of a row."""
        place = self._table.place(row)

        def load(fresh: bool) -> memoryview | None:  # noqa: FBT001
            content = self._read(*place, fresh=fresh)
            return content if self._fits(row, content) else None

        return verified(load, f"{redacted(self._folder)}/{self._table.where(row)}", owner)

    def integers(self, content: memoryview) -> Any:  # noqa: ANN401  # of the type of the table
        """A row of ids."""
        return np.frombuffer(content, self._dtype)

    def vector(self, content: memoryview) -> Floats:
        """A row of vectors."""
        if self._table.dtype == "bfloat16":
            # A bfloat16 is the upper half of a float32.
            widened = np.frombuffer(content, np.uint16).astype(np.uint32) << 16
            return widened.view(np.float32).reshape(self._table.row_shape)
        return np.frombuffer(content, np.float32).reshape(self._table.row_shape)

    def _fits(self, row: int, content: memoryview) -> bool:
        return bool(integrity_digest(content) == self._checks[row].tobytes())


def _demand_shards(folder: str, tables: Mapping[Kind, Table]) -> None:
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


def _demand_limits(index: ShardIndex, limits: Limits, where: str) -> None:
    model = limits.model
    made_for, version = index.made_for, model.version
    if made_for.model_version != version.name:
        raise DataError(
            f"{where}: made for IndexTTS-{made_for.model_version}, but the model is {version}. Codes, speaker vectors "
            "and text ids of one version mean nothing to the other: give data of the model's version."
        )
    if made_for.emotion != limits.emotion:
        raise DataError(
            f"{where}: holds the emotion vectors of the {made_for.emotion}, data.emotion is {limits.emotion}. Shard "
            f"the manifests with --emotion {limits.emotion}, or set data.emotion: {made_for.emotion}."
        )
    # An extension of a SentencePiece model keeps all ids. One of ranks moves those of the languages.
    if version.ranks and made_for.tokenizer_sha256 != limits.tokenizer_sha256:
        raise DataError(
            f"{where}: its texts were encoded with another tokenizer (SHA-256 {made_for.tokenizer_sha256[:16]}…, the "
            f"one given has {limits.tokenizer_sha256[:16]}…). Encode them with it and shard again, or give theirs."
        )
    findings = [
        *_ids_beyond(index, "text", limits.text_pieces, model.max_text_tokens),
        *_ids_beyond(index, "codes", model.number_codes, model.max_mel_tokens),
    ]
    shapes: dict[Kind, tuple[int, ...]] = {
        "condition": model.speaker_shape,
        "emotion": (model.model_dim,),
    }
    for kind, shape in shapes.items():
        if index.tables[kind].row_shape != shape:
            findings.append(f"{kind}: rows of shape {list(index.tables[kind].row_shape)}, expected {list(shape)}")
    if findings:
        advice = "Use the tokenizer and model configuration that the dataset was made for."
        raise DataError(findings_message(f"{where} does not fit", findings, advice))


def _ids_beyond(index: ShardIndex, use: str, count: int, longest: int) -> Iterator[str]:
    """Ids outside 0 .. count - 1, and utterances that are too long."""
    if index.largest[use] >= count:
        yield f"{use}: ids up to {index.largest[use]}, expected 0 … {count - 1}"
    most = int(index.lengths[use].max())
    if most > longest:
        yield f"{use}: an utterance of {most}, the model's limit is {longest}"
