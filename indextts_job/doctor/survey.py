"""Everything that manifests and their arrays say, read once and in parallel, the bad parts too."""

import multiprocessing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from indextts_job.data.checking import BadArrayError, Progress, check_ids, check_vector
from indextts_job.data.manifest import PairRecord, parse_source, scan_manifest
from indextts_job.data.shards import is_sharded
from indextts_job.errors import DataError
from indextts_job.hardware.facts import usable_cpus
from indextts_job.model.config import CONDITION_LATENTS, GPTConfig
from indextts_job.storage import files

Kind = Literal["text", "codes", "condition", "emotion"]
UNKNOWN_ID = 2
"""Of the released tokenizer, and of every extension of it."""
CHUNK = 200
"""Arrays that a process looks at per message."""
MANY = 20_000
"""Arrays from which on processes are worth their start."""
LONGEST_CLIP_S = 1e6
"""A longer duration is no duration."""
THREADS, REMOTE_READERS = 4, 64


@dataclass(frozen=True, slots=True)
class SeenArray:
    """What was seen of one file."""

    fault: str = ""
    """Why it cannot be trained on."""
    length: int = 0
    digest: bytes = b""
    unknown: int = 0
    """Text ids that stand for no piece."""
    marks: int = 0
    """Start or stop ids inside a text."""
    ids: bytes = b""
    """Of a text: int32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A record, and what it says beyond what training needs."""

    record: PairRecord
    validation: bool
    speaker: str
    speakers: tuple[str, str]
    """Of prompt and target, as far as they are told apart; empty where not."""
    target_id: str
    prompt_id: str
    text: str
    duration_s: float | None
    """Of the target."""

    @property
    def where(self) -> str:
        """File, line and id."""
        return f"{self.record.origin} (id {self.record.id})"


@dataclass(slots=True, kw_only=True)
class Survey:
    """All pairs of a training and a validation set, and the arrays that they name."""

    model: GPTConfig
    pieces: int
    pairs: list[Pair] = field(default_factory=list)
    arrays: dict[str, SeenArray] = field(default_factory=dict)
    malformed: list[str] = field(default_factory=list)
    single: list[str] = field(default_factory=list)


def survey(
    train: Sequence[str], validation: Sequence[str], model: GPTConfig, pieces: int, progress: Progress
) -> Survey:
    """Read all of it.

    Args:
        train: Paired manifests, as for training.
        validation: The same, to validate on.
        model: Limits of lengths and codes, widths of vectors.
        pieces: Of the tokenizer.
        progress: Told how many arrays have been looked at.

    Raises:
        DataError: A manifest cannot be read at all, or is a sharded dataset.
    """
    found = Survey(model=model, pieces=pieces)
    for arguments, is_validation in ((train, False), (validation, True)):
        for argument in arguments:
            _read_manifest(argument, found, validation=is_validation)
    kinds: dict[str, Kind] = {}
    for pair in found.pairs:
        record = pair.record
        kinds[record.text_ids_path] = "text"
        kinds[record.codes_path] = "codes"
        kinds[record.condition_path] = "condition"
        kinds[record.emotion_path] = "emotion"
    look = partial(look_at, model=model, pieces=pieces)
    with _workers(kinds) as run:
        for done, (path, seen) in enumerate(zip(kinds, run(look, kinds.items()), strict=True), start=1):
            found.arrays[path] = seen
            if done % CHUNK == 0 or done == len(kinds):
                progress(done, len(kinds))
    return found


def look_at(item: tuple[str, Kind], model: GPTConfig, pieces: int) -> SeenArray:
    """One array, in whatever process."""
    path, kind = item
    try:
        if kind == "condition":
            return SeenArray(digest=check_vector(path, (CONDITION_LATENTS, model.model_dim)).digest)
        if kind == "emotion":
            return SeenArray(digest=check_vector(path, (model.model_dim,)).digest)
        if kind == "codes":
            codes = check_ids(path, model.number_codes, model.max_mel_tokens, "code")
            return SeenArray(length=len(codes.values), digest=codes.digest)
        text = check_ids(path, pieces, model.max_text_tokens, "text id")
    except BadArrayError as error:
        return SeenArray(fault=str(error))
    values = text.values
    return SeenArray(
        length=len(values),
        digest=text.digest,
        unknown=int(np.count_nonzero(values == UNKNOWN_ID)),
        marks=int(np.count_nonzero((values == model.start_text_token) | (values == model.stop_text_token))),
        ids=values.astype(np.int32).tobytes(),
    )


def _read_manifest(argument: str, found: Survey, *, validation: bool) -> None:
    source = parse_source(argument, files.exists)
    if is_sharded(source.url):
        raise DataError(
            f"{source.shown} is a sharded dataset: its samples were checked when it was made, and are again whenever "
            "they are read. Give the manifests that it was made of."
        )
    scanned = scan_manifest(files.lines_of(files.read_manifest_text(source.url)), source)
    found.malformed += scanned.malformed
    found.single += scanned.single
    for record, document in zip(scanned.records, scanned.documents, strict=True):
        found.pairs.append(_pair(record, document, validation=validation))


def _pair(record: PairRecord, document: Mapping[str, object], *, validation: bool) -> Pair:
    def text(key: str) -> str:
        value = document.get(key)
        # Half of a surrogate pair, which JSON can spell, has no bytes to show or to tokenize.
        return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""

    speaker = text("speaker")
    speakers = (text("prompt_speaker"), text("target_speaker"))
    if not speaker and not all(speakers):
        speakers = (_speaker_of(text("prompt_audio_path")), _speaker_of(text("target_audio_path")))
    target, _, prompt = record.id.partition("__")
    duration = document.get("target_duration", document.get("duration"))
    known = isinstance(duration, int | float) and not isinstance(duration, bool) and 0 < duration < LONGEST_CLIP_S
    return Pair(
        record=record,
        validation=validation,
        speaker=speaker or speakers[1],
        speakers=speakers,
        target_id=text("target_id") or target,
        prompt_id=text("prompt_id") or prompt,
        text=text("target_text"),
        duration_s=float(duration) if known else None,  # type: ignore[arg-type]  # known says so
    )


def _speaker_of(audio_path: str) -> str:
    """As the pairing tool reads it from a file name: what stands before the first `_`, after `JA_`."""
    name = audio_path.replace("\\", "/").rpartition("/")[2].removeprefix("JA_")
    speaker, separator, _ = name.partition("_")
    return speaker if separator else ""


Run = Callable[[Callable[[tuple[str, Kind]], SeenArray], Iterable[tuple[str, Kind]]], Iterator[SeenArray]]


@contextmanager
def _workers(paths: Collection[str]) -> Iterator[Run]:
    """Processes for local files, which cost computing; threads for remote ones, which cost waiting."""
    local = all(files.is_local(path) for path in paths)
    several = local and len(paths) > MANY
    pool: Executor
    if several:
        context = multiprocessing.get_context("spawn")  # the parent has threads, which a fork does not survive
        pool = ProcessPoolExecutor(usable_cpus(), mp_context=context)
    else:
        pool = ThreadPoolExecutor(THREADS if local else REMOTE_READERS)
    extra: dict[str, Any] = {"chunksize": CHUNK} if several else {}
    with pool:
        yield lambda work, items: iter(pool.map(work, items, **extra))
