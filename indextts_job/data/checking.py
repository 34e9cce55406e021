"""Manifests with their `.npy` files as a checked dataset: every array is looked at before training starts.

Checking reads each file once, in parallel, and takes a digest of its content.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from indextts_job.data.dataset import Entry, Ids, Limits, SkippedSample, Vector, content_digest
from indextts_job.data.manifest import PairRecord
from indextts_job.data.npy import NpyFormatError, parse_npy
from indextts_job.errors import ConfigError, DataError, findings_message
from indextts_job.model.batch import Floats
from indextts_job.model.config import CONDITION_LATENTS
from indextts_job.storage import files

Progress = Callable[[int, int], None]
"""Called with (done, total)."""
LEAST_LIMIT_BYTES = 2**20
"""An array file of up to so many bytes is read whatever it should hold: the message then says what it does hold."""
WIDEST_ITEM_BYTES = 16


class BadArrayError(Exception):
    """An array is unusable; the message names file, finding and expectation."""


@dataclass(slots=True)
class _Arrays:
    """What the files hold, by path."""

    ids: dict[str, Ids]
    vectors: dict[str, Vector]
    faults: dict[str, str]


def check_records(
    records: Sequence[PairRecord], limits: Limits, progress: Progress, *, skip_bad_samples: bool
) -> tuple[list[Entry], list[SkippedSample]]:
    """Check every array that records name.

    Args:
        records: Lines of manifests.
        limits: What model and tokenizer allow.
        progress: Told how many arrays are checked.
        skip_bad_samples: Leave bad samples out instead of raising.

    Returns:
        The good samples, and those left out.

    Raises:
        DataError: Samples are bad; all of them are named at once.
    """
    arrays = _check_all(records, limits, progress)
    good: list[Entry] = []
    findings: list[str] = []
    skipped: list[SkippedSample] = []
    for record in records:
        reason = _fault_of(record, arrays)
        if reason is None:
            good.append(_entry(record, arrays))
        else:
            findings.append(f"{record.origin} (id {record.id}): {reason}")
            skipped.append(SkippedSample(record.id, reason))
    if findings and not skip_bad_samples:
        advice = (
            f"Repair the files, or train on the other {len(good)} of {len(records)} samples with --skip-bad-samples. "
            "Nothing was written."
        )
        raise DataError(findings_message(f"{len(findings)} bad samples", findings, advice))
    if records and not good:
        raise DataError(findings_message("no usable sample is left", findings, "Repair the dataset."))
    return good, skipped


def _entry(record: PairRecord, arrays: _Arrays) -> Entry:
    return Entry(
        id=record.id,
        language=record.language,
        origin=record.origin,
        text_ids=arrays.ids[record.text_ids_path],
        codes=arrays.ids[record.codes_path],
        condition=arrays.vectors[record.condition_path],
        emotion=arrays.vectors[record.emotion_path],
    )


def _check_all(records: Sequence[PairRecord], limits: Limits, progress: Progress) -> _Arrays:
    model = limits.model
    texts = partial(check_ids, count=limits.text_pieces, longest=model.max_text_tokens, what="text id")
    codes = partial(check_ids, count=model.number_codes, longest=model.max_mel_tokens, what="code")
    conditions = partial(check_vector, shape=(CONDITION_LATENTS, model.model_dim))
    emotions = partial(check_vector, shape=(model.model_dim,))
    jobs: dict[str, Callable[[str], Ids | Vector]] = {}
    for record in records:
        jobs[record.text_ids_path] = texts
        jobs[record.codes_path] = codes
        jobs[record.condition_path] = conditions
        jobs[record.emotion_path] = emotions

    def checked(path: str) -> Ids | Vector | str:
        try:
            return jobs[path](path)
        except BadArrayError as error:
            return str(error)

    arrays = _Arrays({}, {}, {})
    # Reading and hashing release the interpreter lock; more threads than cores hide storage latency.
    with ThreadPoolExecutor(max_workers=4 * (os.cpu_count() or 1)) as pool:
        for done, (path, result) in enumerate(zip(jobs, pool.map(checked, jobs), strict=True), start=1):
            if isinstance(result, Ids):
                arrays.ids[path] = result
            elif isinstance(result, Vector):
                arrays.vectors[path] = result
            else:
                arrays.faults[path] = result
            progress(done, len(jobs))
    return arrays


def _fault_of(record: PairRecord, arrays: _Arrays) -> str | None:
    named = (record.text_ids_path, record.codes_path, record.condition_path, record.emotion_path)
    for path in named:
        if path in arrays.faults:
            return arrays.faults[path]
    if len(set(named)) < len(named) or record.text_ids_path in arrays.vectors or record.codes_path in arrays.vectors:
        return "one file is named for two different things"
    for path, said in ((record.text_ids_path, record.text_tokens), (record.codes_path, record.code_tokens)):
        if len(arrays.ids[path].values) != said:
            return f"{path}: {len(arrays.ids[path].values)} values, the manifest says {said}"
    return None


def _read_array(path: str, most_values: int) -> npt.NDArray[np.generic]:
    try:
        return parse_npy(files.read_bytes(path, _limit_bytes(most_values)))
    except FileNotFoundError:
        raise BadArrayError(f"{path}: file not found{_not_found_hint(path)}") from None
    except NpyFormatError as error:
        raise BadArrayError(f"{path}: {error}") from None
    except (DataError, ConfigError) as error:  # no regular file, too large, or no path at all
        raise BadArrayError(str(error)) from None


def _limit_bytes(most_values: int) -> int:
    return max(LEAST_LIMIT_BYTES, 2 * WIDEST_ITEM_BYTES * most_values)


def _not_found_hint(path: str) -> str:
    """What probably happened to a path that leads nowhere; empty where nothing is known."""
    if not files.is_local(path):
        return ""
    if hint := files.backslash_hint(path):
        return f".{hint.removesuffix('.')}"
    # Older tools wrote paths relative to the working directory; absolute ones come from another machine.
    parts = PurePosixPath(path).parts
    for start in range(1, len(parts)):
        candidate = Path(*parts[start:])
        if candidate.is_file():
            return (
                f", but {candidate} exists below the working directory: write the manifest's paths relative to its own "
                "folder, or absolute for this machine"
            )
    file = files.local_path(path)
    missing = [folder for folder in (file.parent, *file.parent.parents) if not folder.exists()]
    if missing and (file.is_absolute() or path.startswith("~")):
        return (
            f", because there is no {missing[-1]} on this machine. If the manifest comes from another one, put its "
            "arrays beside it and write their paths relative to it"
        )
    return ""


def check_ids(path: str, count: int, longest: int, what: str) -> Ids:
    """Text ids or codes from their file.

    Args:
        path: Path or URL.
        count: Ids are below it.
        longest: The most that the model takes.
        what: One of them in words, for messages.

    Raises:
        BadArrayError: They cannot be trained on.
    """
    array = _read_array(path, longest)
    if not np.issubdtype(array.dtype, np.integer):
        raise BadArrayError(f"{path}: dtype {array.dtype}, expected integers")
    if array.ndim != 1 or not array.size:
        raise BadArrayError(f"{path}: shape {list(array.shape)}, expected [n] with n of at least 1")
    if array.size > longest:
        raise BadArrayError(f"{path}: {array.size} values, the model's limit is {longest}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= count:
        wrong = low if low < 0 else high
        raise BadArrayError(f"{path}: {what} {wrong} out of range, expected 0 … {count - 1}")
    values = np.ascontiguousarray(array, dtype=np.int32)
    return Ids(values, content_digest(values))


def check_vector(path: str, shape: tuple[int, ...]) -> Vector:
    """A conditioning array or an emotion vector, looked at; its file is read again when it is needed.

    Raises:
        BadArrayError: It cannot be trained on.
    """
    most_values = math.prod(shape)
    array = _read_array(path, most_values)
    if array.dtype not in (np.float32, np.float16):
        raise BadArrayError(f"{path}: dtype {array.dtype}, expected float32 or float16")
    if array.shape != shape:
        raise BadArrayError(f"{path}: shape {list(array.shape)}, expected {list(shape)}")
    vector = np.asarray(array, dtype=np.float32)
    if not np.isfinite(vector).all():
        raise BadArrayError(f"{path}: holds NaN or infinity")
    return Vector(path, content_digest(vector), partial(_load_vector, path, most_values))


def _load_vector(path: str, most_values: int, _past_copy: bool) -> Floats:  # noqa: FBT001  # there is no copy
    return np.asarray(parse_npy(files.read_bytes(path, _limit_bytes(most_values))), dtype=np.float32)
