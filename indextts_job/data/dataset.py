"""A dataset in memory: the ids of all samples, and vectors that are read when they are needed.

A vector may be in a file of its own or in a shard; its digest is compared whenever it is read. Content that changes
during a run is an error and never silently another sample.
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
"""Length of the BLAKE2b digests: with 128 bits, an accidental collision among millions of arrays does not happen."""


def content_digest(array: npt.NDArray[np.generic]) -> bytes:
    """Digest of an array's values in C order. Callers pass ids as int32 and vectors as float32."""
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=DIGEST_BYTES).digest()


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a sample's lengths, ids and shapes."""

    model: GPTConfig
    text_pieces: int
    """Number of pieces of the tokenizer in use."""


@dataclass(frozen=True, slots=True)
class SkippedSample:
    """A bad sample that was left out because the user asked for it."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Ids:
    """Text ids or codes of one utterance."""

    values: npt.NDArray[np.integer]
    digest: bytes


@dataclass(frozen=True, slots=True)
class Vector:
    """A conditioning array or an emotion vector that is read when it is needed."""

    where: str
    """File, or shard and row."""
    digest: bytes
    load: Callable[[bool], Floats]
    """Reads the values, without any local copy if the argument is true; raises FileNotFoundError or ValueError when
    they are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One utterance pair."""

    id: str
    language: str
    origin: str
    """Manifest and line, or index and pair, for messages."""
    text_ids: Ids
    codes: Ids
    condition: Vector
    emotion: Vector


READERS = 32
"""Number of samples read at a time from remote storage, to hide its latency."""


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
        """Hash over the ids and the content of all samples in order."""
        # Without paths: a dataset that was moved or sharded is still the same.
        return fingerprint(
            (entry.id, (entry.text_ids.digest, entry.codes.digest, entry.condition.digest, entry.emotion.digest))
            for entry in self.entries
        )

    @property
    def languages(self) -> dict[str, int]:
        """Number of samples by language; the empty key stands for no language."""
        return dict(Counter(entry.language for entry in self.entries))

    def samples(self, indices: Sequence[int]) -> list[Sample]:
        """Several samples; from remote storage, `READERS` at a time."""
        # Threads hide the latency of remote storage; a local disk has little.
        if not any("://" in self.entries[index].condition.where for index in indices):
            return [self.sample(index) for index in indices]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=READERS, thread_name_prefix="samples")
        return list(self._pool.map(self.sample, indices))

    def sample(self, index: int) -> Sample:
        """One sample with its vectors read from storage.

        Raises:
            DataError: A vector has changed since it was checked.
            UnavailableError: A vector can no longer be read.
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
    """Read a vector and compare its digest.

    Args:
        vector: The vector to read.
        owner: The sample that it belongs to, for messages.
    """
    try:
        # A copy on this node may be damaged, and so may a transfer; both are cured by another read from the source.
        for fresh in (False, True, True):
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
