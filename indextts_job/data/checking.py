"""A manifest with its `.npy` files as a checked one: every array is read and checked before training starts.

What is kept is a few columns, filled as files are checked, and never the values of an array. `doctor data` uses the
same checks of files and records.
"""

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from indextts_job.data.array_files import RELEASED_IDS, Progress, of_released_tokenizer
from indextts_job.data.dataset import USES, Column, Limits, SkippedSample, Use
from indextts_job.data.manifest import PairRecord, each_record
from indextts_job.data.manifest_source import ManifestSource
from indextts_job.data.plausibility import Evidence, suspicions
from indextts_job.data.seen_files import SeenFiles, check_files
from indextts_job.data.texts import Bytes, GrowingPaths, GrowingTexts, Paths, Texts, distinct
from indextts_job.errors import DataError, findings_message
from indextts_job.model.languages import language_of, language_of_token

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
    seen = check_files(paths, uses, limits, progress)
    records = _Records(_Named(growing, source, named, uses, paths), seen, limits)
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


@dataclass(frozen=True, slots=True)
class _Named:
    """What a manifest names."""

    growing: _Growing
    source: ManifestSource
    files: Column
    """[records, 4] place among `paths` of each array."""
    uses: npt.NDArray[np.int8]
    """[files] what each is used as."""
    paths: Paths


class _Records:
    """All records of a manifest, with what was found in their files."""

    def __init__(self, manifest: _Named, seen: SeenFiles, limits: Limits) -> None:
        self.ids = manifest.growing.ids.texts()
        self._growing, self._source, self._paths = manifest.growing, manifest.source, manifest.paths
        self._named, self._uses, self._seen = manifest.files, manifest.uses, seen
        self._said = np.frombuffer(manifest.growing.said, np.int64).reshape(-1, 2)
        self._tokens, self._limits = _language_tokens(manifest.growing, limits), limits

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
            # A prompt has an emotion vector of its own, also where all prompts of a speaker name one speaker vector.
            prompts=named[:, USES.index("emotion" if self._limits.emotion == "prompt" else "condition")],
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
        label = list(self._growing.languages)[self._growing.language[index]]
        return wrong or wrong_language(label, int(self._seen.first[rows[0]]), self._limits)


def wrong_language(label: str, first: int, limits: Limits) -> str:
    """The fault of a record whose text is of another language than it says; empty for a good one.

    Args:
        label: The language of the record.
        first: The first id of its text.
        limits: The demands of model and tokenizer.
    """
    if limits.first_language_token is None:
        return ""
    code = language_of_token(first, limits.first_language_token)
    if code == language_of(label).slot:
        return ""
    if of_released_tokenizer(first, limits.first_language_token):
        return f"the language is {label}, its first text id is {first}: {RELEASED_IDS}"
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
class FoundIds:
    """What is known of a file with ids."""

    stored: int
    """Number of ids in the file."""
    read: int
    """Number of those that the model reads."""
    first: int
    """The first id."""


def record_fault(
    record: PairRecord,
    uses: Mapping[str, Use],
    found: Mapping[str, FoundIds],
    faults: Mapping[str, str],
    limits: Limits,
) -> str:
    """Why a record cannot be trained on; empty for a good one.

    Args:
        record: A record whose files have all been checked.
        uses: The use that each file was checked for, by path.
        found: What is known of the files that hold ids, by path.
        faults: Why a file cannot be used, by path.
        limits: The demands of model and tokenizer.
    """
    named = (record.text_ids_path, record.codes_path, record.condition_path, record.emotion_path)
    if fault := next((faults[path] for path in named if path in faults), ""):
        return fault
    if any(uses[path] != use for path, use in zip(named, USES, strict=True)):
        return TWO_THINGS
    stored = [(path, found[path].stored) for path in named[:2]]
    read = [found[path].read for path in named[:2]]
    wrong = next(_wrong_lengths(stored, read, (record.text_tokens, record.code_tokens)), "")
    return wrong or wrong_language(record.language, found[record.text_ids_path].first, limits)


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
