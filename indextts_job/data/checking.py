"""Manifests with their `.npy` files as a checked dataset: every array is read and checked before training starts.

`doctor data` uses the same checks of files and records.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from indextts_job.data.array_files import BadArrayError, Kind, Progress, check_array
from indextts_job.data.dataset import Entry, Ids, Limits, SkippedSample, Vector
from indextts_job.data.manifest import PairRecord
from indextts_job.errors import DataError, findings_message


@dataclass(slots=True)
class _Arrays:
    """The checked files by path; each is in exactly one of the three."""

    ids: dict[str, Ids]
    vectors: dict[str, Vector]
    faults: dict[str, str]


def check_records(
    records: Sequence[PairRecord], limits: Limits, progress: Progress, *, skip_bad_samples: bool
) -> tuple[list[Entry], list[SkippedSample]]:
    """Check every array that records name.

    Args:
        records: The records of manifests.
        limits: The sizes that model and tokenizer allow.
        progress: Called after each array.
        skip_bad_samples: Leave bad samples out instead of raising.

    Returns:
        The good samples, and those left out.

    Raises:
        DataError: Samples are bad; the message names all of them.
    """
    arrays = _check_arrays(records, limits, progress)
    lengths = {path: len(ids.values) for path, ids in arrays.ids.items()}
    faults = [record_fault(record, lengths, arrays.faults) for record in records]
    pairs = list(zip(records, faults, strict=True))
    good = [_entry(record, arrays) for record, fault in pairs if not fault]
    _demand_good(pairs, len(good), skip_bad_samples=skip_bad_samples)
    return good, [SkippedSample(record.id, fault) for record, fault in pairs if fault]


def _demand_good(pairs: Sequence[tuple[PairRecord, str]], good: int, *, skip_bad_samples: bool) -> None:
    findings = [f"{record.origin} (id {record.id}): {fault}" for record, fault in pairs if fault]
    if findings and not skip_bad_samples:
        advice = (
            f"Repair the files, or train on the other {good} of {len(pairs)} samples with --skip-bad-samples. "
            "Nothing was written."
        )
        raise DataError(findings_message(f"{len(findings)} bad samples", findings, advice))
    if pairs and not good:
        raise DataError(findings_message("no usable sample is left", findings, "Repair the dataset."))


def record_fault(record: PairRecord, lengths: Mapping[str, int], faults: Mapping[str, str]) -> str:
    """Why a record cannot be trained on; empty for a good one.

    Args:
        record: A record whose files have all been checked.
        lengths: Number of values of the files that hold ids, by path.
        faults: Why a file cannot be used, by path.
    """
    named = (record.text_ids_path, record.codes_path, record.condition_path, record.emotion_path)
    if fault := next((faults[path] for path in named if path in faults), ""):
        return fault
    # A file may also be an array of ids in one record and a vector in another: then it was checked as a vector.
    if len(set(named)) < len(named) or record.text_ids_path not in lengths or record.codes_path not in lengths:
        return "one file is named for two different things"
    for path, said in ((record.text_ids_path, record.text_tokens), (record.codes_path, record.code_tokens)):
        if lengths[path] != said:
            return f"{path}: {lengths[path]} values, the manifest says {said}"
    return ""


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


def _check_arrays(records: Iterable[PairRecord], limits: Limits, progress: Progress) -> _Arrays:
    kinds = array_kinds(records)

    def checked(path: str) -> Ids | Vector | str:
        try:
            return check_array(path, kinds[path], limits)
        except BadArrayError as error:
            return str(error)

    arrays = _Arrays({}, {}, {})
    # Reading and hashing release the interpreter lock; more threads than cores hide the latency of storage.
    with ThreadPoolExecutor(max_workers=4 * (os.cpu_count() or 1)) as pool:
        for done, (path, result) in enumerate(zip(kinds, pool.map(checked, kinds), strict=True), start=1):
            if isinstance(result, Ids):
                arrays.ids[path] = result
            elif isinstance(result, Vector):
                arrays.vectors[path] = result
            else:
                arrays.faults[path] = result
            progress(done, len(kinds))
    return arrays


def array_kinds(records: Iterable[PairRecord]) -> dict[str, Kind]:
    """The files that records name, each once, with their use. Many records share a prompt's or an emotion's file."""
    kinds: dict[str, Kind] = {}
    for record in records:
        kinds[record.text_ids_path] = "text"
        kinds[record.codes_path] = "codes"
        kinds[record.condition_path] = "condition"
        kinds[record.emotion_path] = "emotion"
    return kinds
