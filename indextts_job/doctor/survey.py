"""Everything in a dataset's manifests and arrays, including the faulty parts, read once and in parallel."""

import multiprocessing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from indextts_job.data.archives import Reader, archive_of
from indextts_job.data.array_files import BadArrayError, Ids, Progress, Vector, check_array
from indextts_job.data.checking import FoundIds, array_uses, record_fault
from indextts_job.data.dataset import Limits, Use
from indextts_job.data.manifest import PairRecord, scan_manifest
from indextts_job.data.manifest_source import parse_source
from indextts_job.data.shards import is_sharded
from indextts_job.errors import DataError
from indextts_job.hardware.facts import usable_cpus
from indextts_job.model.config import GPTConfig
from indextts_job.storage import files
from indextts_job.storage.manifest_text import lines_of, read_manifest_text

UNKNOWN_ID = 2
"""The unknown id of the released tokenizer, and of every extension of it."""
CHUNK = 200
"""Number of arrays that a process checks per message: single ones would cost more to send than to check."""
MANY = 20_000
"""With fewer arrays, starting processes takes longer than they save."""
THREADS, REMOTE_READERS = 4, 64


Group = Sequence[tuple[str, Use]]
"""Paths and uses of arrays."""


@dataclass(frozen=True, slots=True)
class SeenArray:
    """The properties of one file that findings need; small, since a dataset has millions of files."""

    fault: str = ""
    """Why it cannot be trained on."""
    length: int = 0
    """Number of ids that the model reads; 0 for a vector."""
    stored: int = 0
    """Number of ids in the file."""
    first: int = 0
    """First id."""
    tail: int = 0
    """Number of equal ids at the end."""
    norm: float = 0.0
    """Length of a vector."""
    digest: bytes = b""
    unknown: int = 0
    """Number of text ids that stand for no piece."""
    marks: int = 0
    """Number of start or stop ids inside a text."""
    ids: bytes = b""
    """The ids of a text, as int32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A record with those fields of its line that training does not need."""

    record: PairRecord
    validation: bool
    speaker: str
    speakers: tuple[str, str]
    """Speakers of prompt and target; empty where the line does not tell them apart."""
    target_id: str
    prompt_id: str
    text: str
    duration_s: float | None
    """Duration of the target."""
    prompt_language: str
    """Language of the prompt; empty where the line does not say."""

    @property
    def where(self) -> str:
        """File, line and id."""
        return f"{self.record.origin} (id {self.record.id})"


@dataclass(slots=True, kw_only=True)
class Survey:
    """All pairs of a training and a validation set, and the arrays that they name."""

    limits: Limits
    pairs: list[Pair] = field(default_factory=list)
    arrays: dict[str, SeenArray] = field(default_factory=dict)
    malformed: list[str] = field(default_factory=list)
    """Lines that are no records: file, line and reason."""
    single: list[str] = field(default_factory=list)
    """Lines with one utterance instead of a pair."""

    def faults(self) -> list[str]:
        """For each pair, why training would refuse it; empty for a good one."""
        uses = array_uses(pair.record for pair in self.pairs)
        found = {path: FoundIds(seen.stored, seen.length, seen.first) for path, seen in self.arrays.items()}
        faults = {path: seen.fault for path, seen in self.arrays.items() if seen.fault}
        return [record_fault(pair.record, uses, found, faults, self.limits) for pair in self.pairs]


def survey(train: Sequence[str], validation: Sequence[str], limits: Limits, progress: Progress) -> Survey:
    """Read manifests and all arrays that they name.

    Args:
        train: Paired manifests, as for training.
        validation: Paired manifests of the validation set.
        limits: The demands of model and tokenizer.
        progress: Called after every `CHUNK` arrays.

    Raises:
        DataError: A manifest cannot be read at all, or is a sharded dataset.
    """
    found = Survey(limits=limits)
    for arguments, is_validation in ((train, False), (validation, True)):
        for argument in arguments:
            _read_manifest(argument, found, validation=is_validation)
    uses = array_uses(pair.record for pair in found.pairs)
    groups = _by_container(uses)
    look = partial(look_at_all, limits=found.limits)
    done = 0
    with _workers(uses) as run:
        for group, seen in zip(groups, run(look, groups), strict=True):
            found.arrays |= {path: array for (path, _), array in zip(group, seen, strict=True)}
            before, done = done, done + len(group)
            if before // CHUNK < done // CHUNK or done == len(uses):
                progress(done, len(uses))
    return found


def _by_container(uses: Mapping[str, Use]) -> list[Group]:
    """The arrays, those of one archive together, so that it is read once."""
    groups: dict[str, list[tuple[str, Use]]] = {}
    for path, use in uses.items():
        groups.setdefault(archive_of(path) or path, []).append((path, use))
    return list(groups.values())


def look_at_all(group: Group, limits: Limits) -> list[SeenArray]:
    """Check the arrays of one file or archive, in any process.

    Args:
        group: Paths and uses of the arrays.
        limits: The demands of model and tokenizer.
    """
    reader = Reader()
    return [look_at(item, limits, reader) for item in group]


def look_at(item: tuple[str, Use], limits: Limits, reader: Reader) -> SeenArray:
    """Check one array.

    Args:
        item: Path and use of the array.
        limits: The demands of model and tokenizer.
        reader: Keeps the archive that was read last.
    """
    path, use = item
    try:
        array = check_array(path, use, limits, reader)
    except BadArrayError as error:
        return SeenArray(fault=str(error))
    if isinstance(array, Vector):
        return SeenArray(digest=array.digest, norm=array.norm)
    if use == "codes":
        return SeenArray(length=len(array.values), stored=array.stored, digest=array.digest, tail=array.tail)
    return _seen_text(array, limits.model)


def _seen_text(text: Ids, model: GPTConfig) -> SeenArray:
    values = text.values
    return SeenArray(
        length=len(values),
        stored=text.stored,
        first=int(values[0]),
        digest=text.digest,
        unknown=int(np.count_nonzero(values == UNKNOWN_ID)),
        marks=int(np.count_nonzero((values == model.start_text_token) | (values == model.stop_text_token))),
        ids=values.astype(np.int32).tobytes(),
    )


def _read_manifest(argument: str, found: Survey, *, validation: bool) -> None:
    source = parse_source(argument, files.exists)
    if is_sharded(source.url):  # it has no texts, speakers and durations to examine
        raise DataError(
            f"{source.shown} is a sharded dataset: its samples were checked when it was made, and are again whenever "
            "they are read. Give the manifests that it was made of."
        )
    scanned = scan_manifest(lines_of(read_manifest_text(source.url)), source, found.limits.rules)
    found.malformed += scanned.malformed
    found.single += scanned.single
    for record, document in zip(scanned.records, scanned.documents, strict=True):
        found.pairs.append(_pair(record, document, validation=validation))


def _pair(record: PairRecord, document: Mapping[str, object], *, validation: bool) -> Pair:
    speaker, speakers = _text(document, "speaker"), _speakers(document)
    target, prompt = (_text(document, key) for key in ("target_features", "prompt_features"))
    if not target:
        # The pairing tool names a pair TARGET__PROMPT.
        target, _, prompt = record.id.partition("__")
    return Pair(
        record=record,
        validation=validation,
        speaker=speaker or speakers[1],
        speakers=speakers,
        target_id=_text(document, "target_id") or target,
        prompt_id=_text(document, "prompt_id") or prompt,
        text=_text(document, "target_text") or _text(document, "text"),
        duration_s=record.duration_s,
        prompt_language=_text(document, "prompt_lang") or _text(document, "prompt_language"),
    )


def _text(document: Mapping[str, object], key: str) -> str:
    value = document.get(key)
    # JSON can spell half of a surrogate pair, which has no UTF-8 bytes to show or to tokenize.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _speakers(document: Mapping[str, object]) -> tuple[str, str]:
    """The speakers of prompt and target."""
    speakers = (_text(document, "prompt_speaker"), _text(document, "target_speaker"))
    if all(speakers) or _text(document, "speaker"):
        return speakers
    return _speaker_of(_text(document, "prompt_audio_path")), _speaker_of(_text(document, "target_audio_path"))


def _speaker_of(audio_path: str) -> str:
    """The speaker in a file name, by the rule of the pairing tool: what stands before the first `_`, after `JA_`."""
    name = audio_path.replace("\\", "/").rpartition("/")[2].removeprefix("JA_")
    speaker, separator, _ = name.partition("_")
    return speaker if separator else ""


Run = Callable[[Callable[[Group], list[SeenArray]], Iterable[Group]], Iterator[list[SeenArray]]]


@contextmanager
def _workers(paths: Collection[str]) -> Iterator[Run]:
    """Processes for many local files, whose checks take computing; threads for remote files, which take waiting."""
    local = all(files.is_local(path) for path in paths)
    several = local and len(paths) > MANY
    pool: Executor
    if several:
        # The parent has threads: a fork could copy a lock that one of them holds, for ever.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(usable_cpus(), mp_context=context)
    else:
        pool = ThreadPoolExecutor(THREADS if local else REMOTE_READERS)
    extra: dict[str, Any] = {"chunksize": CHUNK} if several else {}
    with pool:
        yield lambda work, items: iter(pool.map(work, items, **extra))
