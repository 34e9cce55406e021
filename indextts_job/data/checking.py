"""A manifest with its `.npy` files as a checked one: every array is read and checked before training starts.

What is kept is a few columns, filled as files are checked, and never the values of an array. `doctor data` uses the
same checks of files and records.
"""

import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from indextts_job.data.array_files import BadArrayError, Ids, Progress, Vector, check_array
from indextts_job.data.dataset import DIGEST_BYTES, USES, Column, Limits, SkippedSample, Use
from indextts_job.data.manifest import ManifestSource, PairRecord, each_record
from indextts_job.data.texts import Bytes, GrowingPaths, GrowingTexts, Paths, Texts
from indextts_job.errors import DataError, findings_message

AT_A_TIME = 4096
"""Number of files handed to the threads at a time: each that waits takes more memory than all that is kept of it."""
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
    each_record(lines, source, growing.add)
    paths, rows = growing.paths.paths()
    named = rows.reshape(-1, len(USES))
    uses = np.zeros(len(paths), np.int8)
    for use in range(len(USES)):
        uses[named[:, use]] = use
    seen = _check_files(paths, uses, limits, progress)
    records = _Records(growing, source, named, uses, seen, paths)
    faults = records.faults()
    _demand_good(records, faults, skip_bad_samples=skip_bad_samples)
    good = np.delete(np.arange(len(named)), list(faults))
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
    )


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

    def add(self, record: PairRecord) -> None:
        self.ids.add(record.id)
        self.language.append(self.languages.setdefault(record.language, len(self.languages)))
        self.line.append(record.line)
        for path in (record.text_ids_path, record.codes_path, record.condition_path, record.emotion_path):
            self.paths.add(path)
        self.said.extend((record.text_tokens, record.code_tokens))


@dataclass(slots=True)
class _Seen:
    """The outcome of the check of every file."""

    digests: Bytes
    lengths: Column
    faults: dict[int, str]


def _check_files(paths: Paths, uses: npt.NDArray[np.int8], limits: Limits, progress: Progress) -> _Seen:
    def checked(row: int) -> Ids | Vector | str:
        try:
            return check_array(paths[row], USES[uses[row]], limits)
        except BadArrayError as error:
            return str(error)

    count = len(paths)
    seen = _Seen(np.zeros((count, DIGEST_BYTES), np.uint8), np.zeros(count, np.int32), {})
    # Reading and hashing release the interpreter lock; more threads than cores hide the latency of storage.
    with ThreadPoolExecutor(max_workers=4 * (os.cpu_count() or 1)) as pool:
        for start in range(0, count, AT_A_TIME):
            rows = range(start, min(start + AT_A_TIME, count))
            for row, result in zip(rows, pool.map(checked, rows), strict=True):
                if isinstance(result, str):
                    seen.faults[row] = result
                else:
                    seen.digests[row] = np.frombuffer(result.digest, np.uint8)
                    seen.lengths[row] = len(result.values) if isinstance(result, Ids) else 0
                progress(row + 1, count)
    return seen


class _Records:
    """All records of a manifest, with what was found in their files."""

    def __init__(
        self,
        growing: _Growing,
        source: ManifestSource,
        named: Column,
        uses: npt.NDArray[np.int8],
        seen: _Seen,
        paths: Paths,
    ) -> None:
        self.ids = growing.ids.texts()
        self._growing, self._source, self._named, self._uses = growing, source, named, uses
        self._seen, self._paths = seen, paths
        self._said = np.frombuffer(growing.said, np.int64).reshape(-1, 2)

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
        bad |= (self._seen.lengths[self._named[:, :2]] != self._said).any(axis=1)
        return {index: self._fault(index) for index in np.flatnonzero(bad).tolist()}

    def _fault(self, index: int) -> str:
        rows = self._named[index].tolist()
        for row in rows:
            if row in self._seen.faults:
                return self._seen.faults[row]
        if any(self._uses[row] != use for use, row in enumerate(rows)):
            return TWO_THINGS
        lengths = [(self._paths[row], int(self._seen.lengths[row])) for row in rows[:2]]
        return next(_wrong_lengths(lengths, self._said[index].tolist()))


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


def record_fault(
    record: PairRecord, uses: Mapping[str, Use], lengths: Mapping[str, int], faults: Mapping[str, str]
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
    found = [(path, lengths[path]) for path in named[:2]]
    return next(_wrong_lengths(found, (record.text_tokens, record.code_tokens)), "")


def _wrong_lengths(found: Iterable[tuple[str, int]], said: Iterable[int]) -> Iterator[str]:
    for (path, length), expected in zip(found, said, strict=True):
        if length != expected:
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
