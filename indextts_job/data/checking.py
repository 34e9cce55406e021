"""A manifest with its `.npy` files as a checked one: every array is read and checked before training starts.

What is kept is a few columns, filled as files are checked, and never the values of an array. `doctor data` uses the
same checks of files and records.
"""

import math
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt

from indextts_job.data.archives import MEMBERS, Reader, archive_of
from indextts_job.data.array_files import BadArrayError, Ids, Progress, Vector, check_array
from indextts_job.data.dataset import DIGEST_BYTES, USES, Column, Limits, SkippedSample, Use
from indextts_job.data.manifest import ManifestSource, PairRecord, each_record
from indextts_job.data.plausibility import Evidence, suspicions
from indextts_job.data.texts import Bytes, GrowingPaths, GrowingTexts, Paths, Texts, distinct
from indextts_job.errors import DataError, findings_message
from indextts_job.model.languages import CODES, language_of

AT_A_TIME = 4096
"""Number of files handed to the threads at a time: each that waits takes more memory than all that is kept of it."""
SHOWN_PLACES = 3
TWO_THINGS = "one file is named for two different things"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedManifest:
    """What is known of a manifest whose files were all checked."""

    ids: Texts
    languages: tuple[str, ...]
    language: Column
    """[samples] place among `languages`."""
    line: Column
    """[samples] number of the line in the manifest."""
    files: Column
    """[samples, 4] place among `paths` of each array, in the order of `USES`."""
    paths: Paths
    digests: Bytes
    """[files, DIGEST_BYTES]."""
    lengths: Column
    """[files] number of ids; 0 for a vector."""
    skipped: tuple[SkippedSample, ...]
    notes: tuple[str, ...] = ()
    """What is suspicious about the whole."""


def check_manifest(
    lines: Iterable[str], source: ManifestSource, limits: Limits, progress: Progress, *, skip_bad_samples: bool
) -> CheckedManifest:
    """Check every array that a manifest names.

    Args:
        lines: The lines of the manifest.
        source: Its URL and language.
        limits: The sizes that model and tokenizer allow.
        progress: Called after each array.
        skip_bad_samples: Leave bad samples out instead of raising.

    Raises:
        DataError: Lines or samples are bad; the message names all of them.
    """
    growing = _Growing()
    each_record(lines, source, growing.add, limits.rules)
    paths, rows = growing.paths.paths()
    named = rows.reshape(-1, len(USES))
    uses = np.zeros(len(paths), np.int8)
    for use in range(len(USES)):
        uses[named[:, use]] = use
    seen = _check_files(paths, uses, limits, progress)
    records = _Records(growing, source, named, uses, seen, paths, limits)
    faults = records.faults()
    _demand_good(records, faults, skip_bad_samples=skip_bad_samples)
    good = np.delete(np.arange(len(named)), list(faults))
    notes = _notes(records, good, limits, source)
    return CheckedManifest(
        ids=records.ids.taken(good) if faults else records.ids,
        languages=tuple(growing.languages),
        language=np.frombuffer(growing.language, np.int32)[good],
        line=np.frombuffer(growing.line, np.int32)[good],
        files=named[good],
        paths=paths,
        digests=seen.digests,
        lengths=seen.lengths,
        skipped=tuple(SkippedSample(records.ids[index], fault) for index, fault in faults.items()),
        notes=notes,
    )


def _notes(records: "_Records", good: npt.NDArray[np.int64], limits: Limits, source: ManifestSource) -> tuple[str, ...]:
    """What is suspicious about the good records; refuses them where it can be nothing but a fault."""
    notes = []
    for suspicion in suspicions(records.evidence(good), limits.model.version):
        places = [records.finding(int(good[place]), suspicion.subject) for place in suspicion.places]
        if suspicion.certain:
            raise DataError(findings_message(f"{source.shown}: {suspicion.text}", places, suspicion.advice))
        examples = "; ".join(places[:SHOWN_PLACES])
        notes.append(f"{source.shown}: {suspicion} `indextts-job doctor data` shows all places; the first: {examples}")
    return tuple(notes)


@dataclass(slots=True)
class _Growing:
    """The columns of the records that were parsed so far."""

    ids: GrowingTexts = field(default_factory=GrowingTexts)
    languages: dict[str, int] = field(default_factory=dict)
    language: "array[int]" = field(default_factory=lambda: array("i"))
    line: "array[int]" = field(default_factory=lambda: array("i"))
    paths: GrowingPaths = field(default_factory=GrowingPaths)
    """Four for each record, in the order of `USES`."""
    said: "array[int]" = field(default_factory=lambda: array("q"))
    """Two for each record: the lengths of text and codes that the manifest says."""
    durations: "array[float]" = field(default_factory=lambda: array("f"))
    """Of the target in seconds; NaN where it is not known."""
    speakers: dict[str, int] = field(default_factory=dict)
    speaker: "array[int]" = field(default_factory=lambda: array("i"))
    """Place among `speakers`; -1 where it is not known."""

    def add(self, record: PairRecord) -> None:
        self.ids.add(record.id)
        self.language.append(self.languages.setdefault(record.language, len(self.languages)))
        self.line.append(record.line)
        for path in (record.text_ids_path, record.codes_path, record.condition_path, record.emotion_path):
            self.paths.add(path)
        self.said.extend((record.text_tokens, record.code_tokens))
        self.durations.append(math.nan if record.duration_s is None else record.duration_s)
        name = record.speaker
        self.speaker.append(self.speakers.setdefault(name, len(self.speakers)) if name else -1)


@dataclass(slots=True)
class _Seen:
    """The outcome of the check of every file."""

    digests: Bytes
    lengths: Column
    """Number of ids that the model reads; 0 for a vector."""
    stored: Column
    """Number of ids in the file."""
    first: Column
    """First id."""
    tails: Column
    """Equal ids at the end."""
    norms: npt.NDArray[np.float32]
    """Length of a vector."""
    faults: dict[int, str]

    @classmethod
    def of_files(cls, count: int) -> "_Seen":
        """Room for so many files."""
        lengths, stored, first, tails = (np.zeros(count, np.int32) for _ in range(4))
        digests, norms = np.zeros((count, DIGEST_BYTES), np.uint8), np.zeros(count, np.float32)
        return cls(digests, lengths, stored, first, tails, norms, {})

    def keep(self, row: int, array: Ids | Vector) -> None:
        """Note what was found in a good file."""
        self.digests[row] = np.frombuffer(array.digest, np.uint8)
        if isinstance(array, Vector):
            self.norms[row] = array.norm
            return
        self.lengths[row], self.stored[row] = len(array.values), array.stored
        self.first[row], self.tails[row] = array.values[0], array.tail


def _check_files(paths: Paths, uses: npt.NDArray[np.int8], limits: Limits, progress: Progress) -> _Seen:
    def checked(rows: Sequence[int]) -> list[Ids | Vector | str]:
        reader = Reader()
        found: list[Ids | Vector | str] = []
        for row in rows:
            try:
                found.append(check_array(paths[row], USES[uses[row]], limits, reader))
            except BadArrayError as error:
                found.append(str(error))
        return found

    count = len(paths)
    seen = _Seen.of_files(count)
    done = 0
    # Reading and hashing release the interpreter lock; more threads than cores hide the latency of storage.
    with ThreadPoolExecutor(max_workers=4 * (os.cpu_count() or 1)) as pool:
        for groups in _batches(_by_container(paths)):
            for rows, results in zip(groups, pool.map(checked, groups), strict=True):
                for row, result in zip(rows, results, strict=True):
                    if isinstance(result, str):
                        seen.faults[row] = result
                    else:
                        seen.keep(row, result)
                    done += 1
                    progress(done, count)
    return seen


def _batches(groups: Iterator[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    while batch := list(islice(groups, AT_A_TIME)):
        yield batch


def _by_container(paths: Paths) -> Iterator[Sequence[int]]:
    """The places of all paths, those of one archive together, so that it is read once."""
    archives: dict[str, list[int]] = {}
    folders = [archive_of(f"{folder}{MEMBERS['text']}.npy") for folder in paths.folders]
    for row, folder in enumerate(paths.folder.tolist()):
        # The members of an archive are named as if it were their folder.
        if archive := folders[folder]:
            archives.setdefault(archive, []).append(row)
        else:
            yield (row,)
    yield from archives.values()


class _Records:
    """All records of a manifest, with what was found in their files."""

    def __init__(  # the parts of a check
        self,
        growing: _Growing,
        source: ManifestSource,
        named: Column,
        uses: npt.NDArray[np.int8],
        seen: _Seen,
        paths: Paths,
        limits: Limits,
    ) -> None:
        self.ids = growing.ids.texts()
        self._growing, self._source, self._named, self._uses = growing, source, named, uses
        self._seen, self._paths = seen, paths
        self._said = np.frombuffer(growing.said, np.int64).reshape(-1, 2)
        self._tokens = _language_tokens(growing, limits)

    def __len__(self) -> int:
        return len(self._named)

    def finding(self, index: int, fault: str) -> str:
        """A bad record for the message: manifest, line, id and fault."""
        return f"{self._source.shown}:{self._growing.line[index]} (id {self.ids[index]}): {fault}"

    def faults(self) -> dict[int, str]:
        """Why records cannot be trained on, by their places."""
        unusable = np.zeros(len(self._paths), bool)
        unusable[list(self._seen.faults)] = True
        bad = unusable[self._named].any(axis=1)
        bad |= (self._uses[self._named] != np.arange(len(USES))).any(axis=1)
        ids = self._named[:, :2]
        # Tools count the ids that they write, of which the model may drop some.
        bad |= ((self._seen.stored[ids] != self._said) & (self._seen.lengths[ids] != self._said)).any(axis=1)
        if self._tokens is not None:
            bad |= self._seen.first[self._named[:, 0]] != self._tokens
        return {index: self._fault(index) for index in np.flatnonzero(bad).tolist()}

    def evidence(self, places: npt.NDArray[np.int64]) -> Evidence:
        """What the whole dataset is judged by.

        Args:
            places: Records without faults.
        """
        named, growing = self._named[places], self._growing
        codes, speakers = named[:, 1], named[:, USES.index("condition")]
        return Evidence(
            code_lengths=self._seen.lengths[codes],
            tails=self._seen.tails[codes],
            durations_s=np.frombuffer(growing.durations, np.float32)[places],
            speakers=np.frombuffer(growing.speaker, np.int32)[places],
            speaker_vectors=distinct(self._seen.digests[speakers])[1],
            speaker_files=speakers,
            speaker_norms=self._seen.norms[speakers],
        )

    def _fault(self, index: int) -> str:
        rows = self._named[index].tolist()
        for row in rows:
            if row in self._seen.faults:
                return self._seen.faults[row]
        if any(self._uses[row] != use for use, row in enumerate(rows)):
            return TWO_THINGS
        stored = [(self._paths[row], int(self._seen.stored[row])) for row in rows[:2]]
        lengths = [int(self._seen.lengths[row]) for row in rows[:2]]
        wrong = next(_wrong_lengths(stored, lengths, self._said[index].tolist()), "")
        return wrong or self._other_language(index)

    def _other_language(self, index: int) -> str:
        growing = self._growing
        label = list(growing.languages)[growing.language[index]]
        assert self._tokens is not None  # noqa: S101  # otherwise no record is bad for its language
        first = int(self._seen.first[self._named[index, 0]]) - int(self._tokens[index]) + language_of(label).row
        return wrong_language(label, CODES[first])


def wrong_language(label: str, code: str) -> str:
    """The fault of a record whose text is of another language than it says.

    Args:
        label: The language of the record.
        code: The language whose token the text begins with.
    """
    return f"the language is {label}, but its text ids begin with the token of {code}. Correct the one or the other"


def _language_tokens(growing: _Growing, limits: Limits) -> Column | None:
    """[records] the token that each text has to begin with; None where the model has no languages."""
    first = limits.first_language_token
    if first is None:
        return None
    tokens = np.array([language_of(label).token(first) for label in growing.languages], np.int32)
    return tokens[np.frombuffer(growing.language, np.int32)]


def _demand_good(records: _Records, faults: Mapping[int, str], *, skip_bad_samples: bool) -> None:
    good = len(records) - len(faults)
    if faults and not (skip_bad_samples and good):
        findings = [records.finding(index, fault) for index, fault in faults.items()]
        if not skip_bad_samples:
            advice = (
                f"Repair the files, or train on the other {good} of {len(records)} samples with --skip-bad-samples. "
                "Nothing was written."
            )
            raise DataError(findings_message(f"{len(findings)} bad samples", findings, advice))
        raise DataError(findings_message("no usable sample is left", findings, "Repair the dataset."))


@dataclass(frozen=True, slots=True)
class Lengths:
    """Numbers of ids."""

    stored: int
    """In the file."""
    read: int
    """Those of them that the model reads."""


def record_fault(
    record: PairRecord, uses: Mapping[str, Use], lengths: Mapping[str, Lengths], faults: Mapping[str, str]
) -> str:
    """Why a record cannot be trained on; empty for a good one.

    Args:
        record: A record whose files have all been checked.
        uses: The use that each file was checked for, by path.
        lengths: Number of values of the files that hold ids, by path.
        faults: Why a file cannot be used, by path.
    """
    named = (record.text_ids_path, record.codes_path, record.condition_path, record.emotion_path)
    if fault := next((faults[path] for path in named if path in faults), ""):
        return fault
    if any(uses[path] != use for path, use in zip(named, USES, strict=True)):
        return TWO_THINGS
    stored = [(path, lengths[path].stored) for path in named[:2]]
    read = [lengths[path].read for path in named[:2]]
    return next(_wrong_lengths(stored, read, (record.text_tokens, record.code_tokens)), "")


def _wrong_lengths(stored: Iterable[tuple[str, int]], read: Iterable[int], said: Iterable[int]) -> Iterator[str]:
    for (path, length), kept, expected in zip(stored, read, said, strict=True):
        if expected not in (length, kept):
            yield f"{path}: {length} values, the manifest says {expected}"


def array_uses(records: Iterable[PairRecord]) -> dict[str, Use]:
    """The files that records name, each once, with their use. Many records share a prompt's or an emotion's file."""
    uses: dict[str, Use] = {}
    for record in records:
        uses[record.text_ids_path] = "text"
        uses[record.codes_path] = "codes"
        uses[record.condition_path] = "condition"
        uses[record.emotion_path] = "emotion"
    return uses
