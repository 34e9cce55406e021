"""A dataset: columns about all samples in memory, and arrays that are read when they are needed.

A sample takes a few hundred bytes of memory, whatever its arrays take. Every array is compared with a hash when it is
read, so content that changes during a run is an error and never silently another sample.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from indextts_job.data.manifest import Emotion, Rules
from indextts_job.data.texts import Bytes, Texts
from indextts_job.errors import DataError, UnavailableError
from indextts_job.model.batch import Floats, Sample
from indextts_job.model.config import GPTConfig
from indextts_job.model.languages import language_of

DIGEST_BYTES = 16
"""Length of the BLAKE2b digests: with 128 bits, an accidental collision among millions of arrays does not happen."""
Use = Literal["text", "codes", "condition", "emotion"]
"""The use of an array in a sample."""
USES: tuple[Use, ...] = ("text", "codes", "condition", "emotion")
Column = npt.NDArray[np.int32]
Values = npt.NDArray[Any]
Arrays = tuple[npt.NDArray[np.integer], npt.NDArray[np.integer], Floats, Floats]
"""The arrays of a sample in the order of `USES`."""
Owner = Callable[[int], str]
"""Says which sample an index of a source is, for messages."""
CHUNK = 2**14
"""Number of samples whose identity is put together at a time."""
T = TypeVar("T")


def language_rows(languages: Sequence[str], model: GPTConfig) -> tuple[int, ...]:
    """Rows of the language table, one for each label; empty where the model has no such table.

    Raises:
        ValueError: A label names no language of the model.
    """
    return tuple(language_of(label).row for label in languages) if model.version.language_rows else ()


def content_digest(array: npt.NDArray[np.generic]) -> bytes:
    """Digest of an array's values in C order. Callers pass ids as int32 and vectors as float32."""
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=DIGEST_BYTES).digest()


@dataclass(frozen=True, slots=True)
class Limits:
    """What model, tokenizer and settings demand of a sample: its lengths, ids, shapes and language."""

    model: GPTConfig
    text_pieces: int
    """Number of pieces of the tokenizer in use."""
    first_language_token: int | None = None
    """Id of the first language's token, with one of which every text begins; None where the tokenizer has none."""
    tokenizer_sha256: str = ""
    """Hash of the tokenizer's file."""
    emotion: Emotion = "prompt"
    """Whose emotion vector a sample gets."""
    self_pairs: bool = False
    """Whether a pair's prompt may be its target, where the version refuses that."""

    @property
    def rules(self) -> Rules:
        """How manifests are read."""
        return Rules(self.model.version, self.emotion, self.self_pairs)


@dataclass(frozen=True, slots=True)
class SkippedSample:
    """A bad sample that was left out because the user asked for it."""

    id: str
    reason: str


class Source(Protocol):
    """The place that the arrays of a part are read from."""

    def origin(self, index: int) -> str:
        """Manifest and line, or index and pair, for messages."""

    def digests(self, use: Use, start: int, stop: int) -> Bytes:
        """[samples, DIGEST_BYTES] the BLAKE2b digests of the arrays of the samples [start, stop)."""

    def largest(self, use: Use) -> int:
        """An id that no text, or no array of codes, goes beyond."""

    def read(self, indices: Sequence[int], owner: Owner) -> Sequence[Arrays]:
        """The arrays of several samples, each compared with its hash.

        Raises:
            DataError: An array has changed since it was checked.
            UnavailableError: An array can no longer be read.
        """

    def read_one(self, use: Use, index: int, owner: Owner) -> Values:
        """One array of one sample, as `read`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The samples of one manifest or one sharded dataset, in their order."""

    ids: Texts
    languages: tuple[str, ...]
    language: Column
    """[samples] the language of each, as its place among `languages`."""
    language_rows: tuple[int, ...] = ()
    """Row of the language table of each of `languages`; empty where the model has none."""
    text_lengths: Column
    """[samples] number of text ids."""
    code_lengths: Column
    """[samples] number of codes."""
    encoders: Mapping[str, str] | None = None
    """SHA-256 of the encoders that made the arrays, by name; empty where a sharded dataset does not say; None for the
    files of a manifest."""
    source: Source

    def __len__(self) -> int:
        return len(self.ids)

    def identity(self) -> Iterator[Bytes]:
        """The bytes that the fingerprint is made of: for each sample its id, a zero byte, and the four digests."""
        for start in range(0, len(self), CHUNK):
            stop = min(start + CHUNK, len(self))
            digests = [self.source.digests(use, start, stop) for use in USES]
            yield identity_bytes(*self.ids.between(start, stop), np.concatenate(digests, axis=1))

    @property
    def language_counts(self) -> dict[str, int]:
        """Number of samples by language, in the order in which a reader of the manifest would meet them."""
        numbers, first, found = np.unique(self.language, return_index=True, return_counts=True)
        return {self.languages[numbers[place]]: int(found[place]) for place in np.argsort(first)}

    def owner(self, index: int) -> str:
        """A sample for messages."""
        return f"sample {self.ids[index]}, {self.source.origin(index)}"

    def samples(self, indices: Sequence[int], first: int) -> list[Sample]:
        """Several samples with their arrays.

        Args:
            indices: Places in this part.
            first: Place of the part's first sample in the dataset.
        """
        return [
            Sample(
                index=first + index,
                id=self.ids[index],
                text_ids=text,
                codes=codes,
                condition=condition,
                emotion=emotion,
                language_row=self.language_rows[self.language[index]] if self.language_rows else 0,
            )
            for index, (text, codes, condition, emotion) in zip(
                indices, self.source.read(indices, self.owner), strict=True
            )
        ]


def identity_bytes(values: Bytes, offsets: npt.NDArray[np.int64], digests: Bytes) -> Bytes:
    """The ids and digests of samples, alternating, with a zero byte behind each id: what a fingerprint is made of.

    Args:
        values: Bytes of the ids.
        offsets: [samples + 1] where each id begins, and where the last one ends.
        digests: [samples, width] of their arrays.
    """
    width = digests.shape[1]
    sizes = np.diff(offsets)
    ends = np.cumsum(sizes + 1 + width)
    joined = np.zeros(ends[-1], np.uint8)
    begins = ends - width - 1 - sizes
    joined[np.arange(len(values)) + np.repeat(begins - offsets[:-1], sizes)] = values
    np.lib.stride_tricks.sliding_window_view(joined, width, writeable=True)[ends - width] = digests
    return joined


class Dataset:
    """The samples of one or more sources, in their order."""

    def __init__(self, parts: Sequence[Part], skipped: Sequence[SkippedSample] = (), notes: Sequence[str] = ()) -> None:
        self.parts = tuple(parts)
        self.skipped = tuple(skipped)
        self.notes = tuple(notes)
        """What is suspicious about whole sources."""
        self.text_lengths = _column([part.text_lengths for part in parts])
        """[samples] number of text ids."""
        self.code_lengths = _column([part.code_lengths for part in parts])
        """[samples] number of codes."""
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        self._fingerprint = ""

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the ids and the content of all samples in order."""
        # Without paths: a dataset that was moved or sharded is still the same. Computed once, as nothing of it changes.
        if not self._fingerprint:
            digest = hashlib.sha256()
            for part in self.parts:
                for piece in part.identity():
                    digest.update(piece.data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    @property
    def part_fingerprints(self) -> tuple[str, ...]:
        """The same of each source by itself."""
        if len(self.parts) == 1:
            return (self.fingerprint,)
        return tuple(Dataset([part]).fingerprint for part in self.parts)

    @property
    def languages(self) -> dict[str, int]:
        """Number of samples by language; the empty key stands for no language."""
        counts: dict[str, int] = {}
        for part in self.parts:
            for name, count in part.language_counts.items():
                counts[name] = counts.get(name, 0) + count
        return counts

    def tokens(self, config: GPTConfig, indices: npt.NDArray[np.integer] | slice = slice(None)) -> list[int]:
        """Packed rows of samples.

        Args:
            config: The model's sizes.
            indices: Their places in the dataset; all by default.
        """
        rows: npt.NDArray[np.integer] = config.sample_tokens(self.text_lengths[indices], self.code_lengths[indices])
        counts: list[int] = rows.tolist()
        return counts

    def id_of(self, index: int) -> str:
        """Name of a sample in its manifest."""
        part, place = self.place(index)
        return part.ids[place]

    def origin_of(self, index: int) -> str:
        """Manifest and line, or index and pair, of a sample, for messages."""
        part, place = self.place(index)
        return part.source.origin(place)

    def language_of(self, index: int) -> str:
        """Label of a sample's language."""
        part, place = self.place(index)
        return str(part.languages[int(part.language[place])])

    def first_of_each_language(self, most: int) -> list[int]:
        """The first samples of each language, at most so many of each, in their order; 0 = all."""
        taken: dict[str, int] = {}
        chosen = []
        for index in range(len(self)):
            language = self.language_of(index)
            taken[language] = taken.get(language, 0) + 1
            if not most or taken[language] <= most:
                chosen.append(index)
        return chosen

    def fingerprints_by_language(self, indices: Iterable[int]) -> dict[str, str]:
        """SHA-256 over the ids and the content of some samples, by their language.

        Args:
            indices: Their places in the dataset; the order counts.
        """
        digests: dict[str, Any] = {}
        for index in indices:
            part, place = self.place(index)
            digest = digests.setdefault(self.language_of(index), hashlib.sha256())
            digest.update(part.ids[place].encode() + b"\0")
            for use in USES:
                digest.update(part.source.digests(use, place, place + 1).tobytes())
        return {language: digest.hexdigest() for language, digest in digests.items()}

    def sample(self, index: int) -> Sample:
        """One sample, as `samples`."""
        return self.samples([index])[0]

    def samples(self, indices: Sequence[int]) -> list[Sample]:
        """Several samples with their arrays read from storage.

        Raises:
            DataError: An array has changed since it was checked.
            UnavailableError: An array can no longer be read.
        """
        if len(self.parts) == 1:
            return self.parts[0].samples(indices, 0)
        places = [self._place(index) for index in indices]
        found: dict[int, Iterator[Sample]] = {}
        for number in {part for part, _ in places}:
            # All samples of a part at once, so that its requests are made in parallel.
            inside = [place for part, place in places if part == number]
            found[number] = iter(self.parts[number].samples(inside, int(self._starts[number])))
        return [next(found[part]) for part, _ in places]

    def part_of(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The parts of samples, as places among `parts`, by their places in the dataset."""
        return np.searchsorted(self._starts, indices, side="right") - 1

    def place(self, index: int) -> tuple[Part, int]:
        """The part of a sample, and its place there."""
        number, place = self._place(index)
        return self.parts[number], place

    def _place(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return part, index - int(self._starts[part])


def _column(pieces: Sequence[Column]) -> Column:
    # One part is the usual case, and its column is not kept twice.
    return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, np.int32), *pieces])


def verified(load: Callable[[bool], T | None], where: str, owner: str) -> T:
    """Read an array whose hash has to fit.

    Args:
        load: Reads it, from the source itself if the argument is true; None when the hash does not fit.
        where: File, or shard and row.
        owner: The sample that it belongs to, for messages.
    """
    try:
        # A copy on this node may be damaged, and so may a transfer; both are cured by another read from the source.
        for fresh in (False, True, True):
            found = load(fresh)
            if found is not None:
                return found
    except (FileNotFoundError, ValueError) as error:
        raise UnavailableError(
            f"{where} ({owner}) was fine when checked and cannot be read now: {error}. "
            "Restore it and start again; nothing is lost."
        ) from error
    raise DataError(
        f"{where} ({owner}) changed since it was checked. "
        "Restore the original, or start a new run with the changed dataset."
    )
