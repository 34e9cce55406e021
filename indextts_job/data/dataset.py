"""A checked dataset: every array looked at before training starts, ids in memory, vectors read on demand.

Checking reads each file once, in parallel, and takes a digest of its content. The digests make the fingerprint that
a checkpoint records, and they are compared again whenever a vector is read: a file that changes under a running job
is an error, not another sample.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from indextts_job import files
from indextts_job.data.batch import Sample
from indextts_job.data.manifest import PairRecord, parse_records, parse_source
from indextts_job.data.npy import NpyFormatError, parse_npy
from indextts_job.errors import DataError, UnavailableError, findings_message
from indextts_job.model.config import CONDITION_LATENTS, GPTConfig

DIGEST_BYTES = 16
"""Of BLAKE2b: 128 bits make an accidental collision among millions of arrays impossible in practice."""


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


class _BadSampleError(Exception):
    """One array of a sample is unusable; the message names file, finding and expectation."""


@dataclass(frozen=True, slots=True)
class _CheckedArray:
    digest: bytes
    values: npt.NDArray[np.generic] | None
    """Kept for ids, dropped for vectors."""


class Dataset:
    """The samples of one or more manifests, in their order."""

    def __init__(
        self,
        records: Sequence[PairRecord],
        arrays: dict[str, _CheckedArray],
        skipped: Sequence[SkippedSample],
    ) -> None:
        self.records = records
        self.skipped = skipped
        self._arrays = arrays
        self.text_lengths = [len(self._ids(record.text_ids_path)) for record in records]
        self.code_lengths = [len(self._ids(record.codes_path)) for record in records]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def fingerprint(self) -> str:
        """Hash over ids and content of all samples in order; paths do not enter, so a moved dataset is the same."""
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(record.id.encode() + b"\0")
            for path in _paths(record):
                digest.update(self._arrays[path].digest)
        return digest.hexdigest()

    @property
    def languages(self) -> dict[str, int]:
        """Samples by language; an empty key where none is given."""
        return dict(Counter(record.language for record in self.records))

    def sample(self, index: int) -> Sample:
        """One sample with its vectors read from storage.

        Raises:
            DataError: A vector changed since it was checked.
            UnavailableError: A vector cannot be read any more.
        """
        record = self.records[index]
        return Sample(
            index=index,
            id=record.id,
            text_ids=self._ids(record.text_ids_path),
            codes=self._ids(record.codes_path),
            condition=self._vector(record.condition_path, record),
            emotion=self._vector(record.emotion_path, record),
        )

    def _ids(self, path: str) -> npt.NDArray[np.integer]:
        values = self._arrays[path].values
        if values is None:
            raise DataError(f"{path} is named both as ids and as a vector. Repair the manifest.")
        return values  # type: ignore[return-value]  # checked to be integers

    def _vector(self, path: str, record: PairRecord) -> npt.NDArray[np.float32]:
        try:
            array = parse_npy(files.read_bytes(path))
        except (FileNotFoundError, NpyFormatError) as error:
            raise UnavailableError(
                f"{path} (sample {record.id}, {record.origin}) was fine when checked and cannot be read now: {error}. "
                "Restore the file and start again; nothing is lost."
            ) from error
        vector = np.asarray(array, dtype=np.float32)
        if _digest(vector) != self._arrays[path].digest:
            raise DataError(
                f"{path} (sample {record.id}, {record.origin}) changed while the job was running. "
                "Restore the original file, or start a new run with the changed dataset."
            )
        return vector


def load_dataset(
    arguments: Sequence[str],
    limits: Limits,
    *,
    skip_bad_samples: bool,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Dataset:
    """Read manifests and check every array they name.

    Args:
        arguments: Manifest arguments as the user gave them.
        limits: What model and tokenizer allow.
        skip_bad_samples: Leave bad samples out instead of raising.
        progress: Called with (arrays checked, arrays in all).

    Raises:
        DataError: A manifest or a sample is bad; all bad samples are named at once.
    """
    records = [record for argument in arguments for record in _read_manifest(argument)]
    jobs: dict[str, Callable[[str], _CheckedArray]] = {}
    for record in records:
        jobs[record.text_ids_path] = lambda path: _check_ids(
            path, limits.text_pieces, limits.model.max_text_tokens, "text id"
        )
        jobs[record.codes_path] = lambda path: _check_ids(
            path, limits.model.number_codes, limits.model.max_mel_tokens, "code"
        )
        jobs[record.condition_path] = lambda path: _check_vector(path, (CONDITION_LATENTS, limits.model.model_dim))
        jobs[record.emotion_path] = lambda path: _check_vector(path, (limits.model.model_dim,))
    arrays, faults = _check_all(jobs, progress)
    good: list[PairRecord] = []
    findings: list[str] = []
    skipped: list[SkippedSample] = []
    for record in records:
        reason = _fault_of(record, arrays, faults)
        if reason is None:
            good.append(record)
        else:
            findings.append(f"{record.origin} (id {record.id}): {reason}")
            skipped.append(SkippedSample(record.id, reason))
    if findings and not skip_bad_samples:
        advice = (
            f"Repair the files, or train on the other {len(good)} of {len(records)} samples with --skip-bad-samples. "
            "Nothing was written."
        )
        raise DataError(findings_message(f"{len(findings)} bad samples", findings, advice))
    if not good:
        raise DataError(findings_message("no usable sample is left", findings, "Repair the dataset."))
    return Dataset(good, arrays, skipped)


def _read_manifest(argument: str) -> list[PairRecord]:
    source = parse_source(argument, files.exists)
    return parse_records(files.read_manifest_text(source.url).splitlines(), source)


def _paths(record: PairRecord) -> tuple[str, str, str, str]:
    return record.text_ids_path, record.codes_path, record.condition_path, record.emotion_path


def _check_all(
    jobs: dict[str, Callable[[str], _CheckedArray]], progress: Callable[[int, int], None]
) -> tuple[dict[str, _CheckedArray], dict[str, str]]:
    """Run all checks; returns what is good and what is wrong, by path."""

    def checked(path: str) -> _CheckedArray | str:
        try:
            return jobs[path](path)
        except _BadSampleError as error:
            return str(error)

    arrays: dict[str, _CheckedArray] = {}
    faults: dict[str, str] = {}
    # Reading and hashing release the interpreter lock; more threads than cores hide storage latency.
    with ThreadPoolExecutor(max_workers=4 * (os.cpu_count() or 1)) as pool:
        for done, (path, result) in enumerate(zip(jobs, pool.map(checked, jobs), strict=True), start=1):
            if isinstance(result, str):
                faults[path] = result
            else:
                arrays[path] = result
            progress(done, len(jobs))
    return arrays, faults


def _fault_of(record: PairRecord, arrays: dict[str, _CheckedArray], faults: dict[str, str]) -> str | None:
    for path in _paths(record):
        if path in faults:
            return faults[path]
    for path, said in ((record.text_ids_path, record.text_tokens), (record.codes_path, record.code_tokens)):
        values = arrays[path].values
        if values is not None and len(values) != said:
            return f"{path}: {len(values)} values, the manifest says {said}"
    return None


def _read_array(path: str) -> npt.NDArray[np.generic]:
    try:
        return parse_npy(files.read_bytes(path))
    except FileNotFoundError:
        hint = _working_directory_reading(path)
        raise _BadSampleError(f"{path}: file not found{hint}") from None
    except NpyFormatError as error:
        raise _BadSampleError(f"{path}: {error}") from None


def _working_directory_reading(path: str) -> str:
    """Two older tools wrote paths relative to the working directory: name that file if it is there."""
    if not files.is_local(path):
        return ""
    parts = PurePosixPath(path).parts
    for start in range(1, len(parts)):
        candidate = files.local_path(str(PurePosixPath(*parts[start:])))
        if candidate.is_file():
            return (
                f", but {candidate} exists below the working directory: the manifest's paths are relative to the "
                "folder it was made in; move the manifest there or rewrite its paths"
            )
    return ""


def _check_ids(path: str, count: int, longest: int, what: str) -> _CheckedArray:
    array = _read_array(path)
    if not np.issubdtype(array.dtype, np.integer):
        raise _BadSampleError(f"{path}: dtype {array.dtype}, expected integers")
    if array.ndim != 1 or not array.size:
        raise _BadSampleError(f"{path}: shape {list(array.shape)}, expected [n] with n of at least 1")
    if array.size > longest:
        raise _BadSampleError(f"{path}: {array.size} values, the model's limit is {longest}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= count:
        wrong = low if low < 0 else high
        raise _BadSampleError(f"{path}: {what} {wrong} out of range, expected 0 … {count - 1}")
    values = np.ascontiguousarray(array, dtype=np.int32)
    return _CheckedArray(_digest(values), values)


def _check_vector(path: str, shape: tuple[int, ...]) -> _CheckedArray:
    array = _read_array(path)
    if array.dtype not in (np.float32, np.float16):
        raise _BadSampleError(f"{path}: dtype {array.dtype}, expected float32 or float16")
    if array.shape != shape:
        raise _BadSampleError(f"{path}: shape {list(array.shape)}, expected {list(shape)}")
    vector = np.asarray(array, dtype=np.float32)
    if not np.isfinite(vector).all():
        raise _BadSampleError(f"{path}: holds NaN or infinity")
    return _CheckedArray(_digest(vector), None)


def _digest(array: npt.NDArray[np.generic]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=DIGEST_BYTES).digest()
