"""A dataset in memory: ids of all samples, and vectors that are read when they are needed.

Where a vector lies, in a file of its own or in a shard, does not matter here: its digest is compared whenever it is
read. Content that changes under a running job is an error, not another sample.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indextts_job.errors import DataError, UnavailableError
from indextts_job.model.batch import Floats, Sample
from indextts_job.model.config import GPTConfig

DIGEST_BYTES = 16
"""Of BLAKE2b: 128 bits make an accidental collision among millions of arrays impossible in practice."""


def content_digest(array: npt.NDArray[np.generic]) -> bytes:
    """Digest of an array's values in C order; ids are taken as int32, vectors as float32."""
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=DIGEST_BYTES).digest()


@dataclass(frozen=True, slots=True)
class Limits:
    """What a sample may hold."""

    model: GPTConfig
    text_pieces: int
    """Pieces of the tokenizer in use."""


@dataclass(frozen=True, slots=True)
class SkippedSample:
    """A sample left out on request."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Ids:
    """Text ids or codes of one utterance."""

    values: npt.NDArray[np.integer]
    digest: bytes


@dataclass(frozen=True, slots=True)
class Vector:
    """A conditioning array or an emotion vector, not read yet."""

    where: str
    """File, or shard and row."""
    digest: bytes
    load: Callable[[bool], Floats]
    """Reads it, past any copy when the argument is true; raises FileNotFoundError or ValueError when it is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One utterance pair."""

    id: str
    language: str
    origin: str
    """Where it was named, for messages."""
    text_ids: Ids
    codes: Ids
    condition: Vector
    emotion: Vector


READERS = 32
"""Samples read at a time from remote storage, to hide its latency."""


class Dataset:
    """The samples of one or more sources, in their order."""

    def __init__(self, entries: Sequence[Entry], skipped: Sequence[SkippedSample] = ()) -> None:
        self.entries = entries
        self.skipped = skipped
        self.text_lengths = [len(entry.text_ids.values) for entry in entries]
        self.code_lengths = [len(entry.codes.values) for entry in entries]
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def fingerprint(self) -> str:
        """Hash over ids and content of all samples in order.

        Paths do not enter: a moved dataset is the same, and so is one that was sharded.
        """
        return fingerprint(
            (entry.id, (entry.text_ids.digest, entry.codes.digest, entry.condition.digest, entry.emotion.digest))
            for entry in self.entries
        )

    @property
    def languages(self) -> dict[str, int]:
        """Samples by language; an empty key where none is given."""
        return dict(Counter(entry.language for entry in self.entries))

    def samples(self, indices: Sequence[int]) -> list[Sample]:
        """Several samples; from remote storage, many at a time."""
        if not any("://" in self.entries[index].condition.where for index in indices):
            return [self.sample(index) for index in indices]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=READERS, thread_name_prefix="samples")
        return list(self._pool.map(self.sample, indices))

    def sample(self, index: int) -> Sample:
        """One sample with its vectors read from storage.

        Raises:
            DataError: A vector changed since it was checked.
            UnavailableError: A vector cannot be read any more.
        """
        entry = self.entries[index]
        return Sample(
            index=index,
            id=entry.id,
            text_ids=entry.text_ids.values,
            codes=entry.codes.values,
            condition=read_vector(entry.condition, f"sample {entry.id}, {entry.origin}"),
            emotion=read_vector(entry.emotion, f"sample {entry.id}, {entry.origin}"),
        )


def fingerprint(samples: Iterable[tuple[str, Sequence[bytes]]]) -> str:
    """Hash over (id, digests of text, codes, condition, emotion) of all samples in order."""
    digest = hashlib.sha256()
    for name, parts in samples:
        digest.update(name.encode() + b"\0")
        for part in parts:
            digest.update(part)
    return digest.hexdigest()


def read_vector(vector: Vector, owner: str) -> Floats:
    """A vector from storage, verified.

    Args:
        vector: What to read.
        owner: Whose it is, for messages.
    """
    try:
        for fresh in (False, True, True):  # a copy on this node may have rotted, or the line may lie
            values = vector.load(fresh)
            if content_digest(values) == vector.digest:
                return values
    except (FileNotFoundError, ValueError) as error:
        raise UnavailableError(
            f"{vector.where} ({owner}) was fine when checked and cannot be read now: {error}. "
            "Restore it and start again; nothing is lost."
        ) from error
    raise DataError(
        f"{vector.where} ({owner}) changed since it was checked. "
        "Restore the original, or start a new run with the changed dataset."
    )
