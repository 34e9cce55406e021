"""Write a copy of a dataset without padded code tails. The input is never changed.

Only the arrays that are cut are written. The new manifests name all others where they are, so the output has to be on
the same disk or in the same bucket as the dataset.
"""

import io
import json
import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from indextts_job.data.array_files import check_ids
from indextts_job.data.manifest import ManifestSource, PairRecord, parse_source, scan_manifest
from indextts_job.doctor.findings import Finding, data_finding
from indextts_job.doctor.survey import Survey
from indextts_job.doctor.tails import Tail, padded_tails
from indextts_job.errors import ConfigError, DataError
from indextts_job.redaction import redacted
from indextts_job.storage import files, urls
from indextts_job.storage.manifest_text import lines_of, read_manifest_text
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.run_storage import RunStorage

WRITERS = 16
"""Number of arrays written at a time, to hide the latency of remote storage."""
_PATHS = {
    "prompt_condition_path": "condition_path",
    "target_text_ids_path": "text_ids_path",
    "target_codes_path": "codes_path",
}
"""Keys of a manifest, and the fields of a record that hold their resolved paths."""
_EMOTIONS = ("prompt_emo_vec_path", "target_emo_vec_path")
"""Keys of the emotion vector; the first one that a line has counts, as in `data/manifest.py`."""


def drop_tails(found: Survey, manifests: Sequence[str], output: str) -> Finding:
    """Write manifests and cut codes into an empty folder.

    Args:
        found: The content of the manifests and their arrays.
        manifests: The manifests that `found` was read from, training and validation.
        output: Folder or URL.

    Returns:
        A finding that says what was written.

    Raises:
        ConfigError: The output is not empty, or manifests there could not name the arrays.
        DataError: A manifest has lines that are no pairs.
    """
    if found.malformed or found.single:
        raise DataError(
            "the manifests have lines that are no pairs: repair or remove these first, nothing was written."
        )
    output = output.rstrip("/")
    storage = _empty_storage(output)
    tails = _tails(found)
    if not tails:
        return data_finding("repair", "ok", "no padded code tails that durations tell of: nothing was written")
    cut = dict(zip(tails, (f"codes/{name}" for name in _file_names(tails)), strict=True))
    sources = [parse_source(argument, files.exists) for argument in manifests]
    targets = _file_names([source.url for source in sources])
    # The texts come first: they fail where a path cannot be named from the output, before anything is written.
    texts = [
        _manifest_text(source, f"{output}/{target}", cut, tails)
        for source, target in zip(sources, targets, strict=True)
    ]
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda path: storage.write(cut[path], _cut(path, tails[path], found)), tails))
    # The manifests come last, so that a folder with a manifest is complete.
    for target, text in zip(targets, texts, strict=True):
        storage.write(target, text)
    return _done(storage, targets, tails)


def _tails(found: Survey) -> dict[str, Tail]:
    # A pair with a fault elsewhere is repaired as well: only its codes are needed for that.
    good = [pair for pair in found.pairs if not found.arrays[pair.record.codes_path].fault]
    return dict(padded_tails(good, found))


def _empty_storage(output: str) -> RunStorage:
    storage = open_storage(output)
    if storage.list("") or storage.list("codes"):
        raise ConfigError(f"--output {redacted(output)} is not empty. Give a new folder; nothing is overwritten.")
    return storage


def _done(storage: RunStorage, targets: Sequence[str], tails: Mapping[str, Tail]) -> Finding:
    codes = sum(tail.codes - tail.speech for tail in tails.values())
    text = f"{len(tails)} code arrays cut by {codes} codes in all; {', '.join(targets)} written to {storage.url}"
    advice = "Train with these manifests. They name all other arrays at their old place, so keep the old dataset."
    return Finding(subject="repair", level="ok", found=text, advice=advice, details=tuple(map(str, tails.values())))


def _cut(path: str, tail: Tail, found: Survey) -> bytes:
    model = found.limits.model
    # Read again: a survey of millions of arrays does not keep their values.
    ids = check_ids(path, model.number_codes, model.max_mel_tokens, "code")
    stream = io.BytesIO()
    np.save(stream, ids.values[: tail.speech])
    return stream.getvalue()


def _manifest_text(source: ManifestSource, target: str, cut: Mapping[str, str], tails: Mapping[str, Tail]) -> bytes:
    """The new manifest of an old one.

    Args:
        source: The old manifest.
        target: Path or URL of the new one.
        cut: Paths of the cut arrays below the output, by their old paths.
        tails: Lengths of the cut arrays, by their old paths.
    """
    scanned = scan_manifest(lines_of(read_manifest_text(source.url)), source)
    rows = zip(scanned.records, scanned.documents, strict=True)
    return b"".join(_line(_document(record, row, cut, tails, target)) for record, row in rows)


def _document(
    record: PairRecord, document: Mapping[str, object], cut: Mapping[str, str], tails: Mapping[str, Tail], target: str
) -> dict[str, object]:
    """A line of the new manifest: all fields of the old one, with paths relative to the new manifest."""
    changed = dict(document)  # fields that we do not know are kept
    for key, field in _PATHS.items():
        changed[key] = _seen_from(getattr(record, field), target)
    for key in _EMOTIONS:
        if document.get(key):
            changed[key] = _seen_from(record.emotion_path, target)
            break
    if record.codes_path in cut:
        changed["target_codes_path"] = cut[record.codes_path]
        changed["target_code_len"] = tails[record.codes_path].speech
    return changed


def _seen_from(path: str, target: str) -> str:
    """A path relative to the new manifest."""
    if urls.is_local(path) and urls.is_local(target):
        # Symbolic links are resolved in both: `..` behind a link leads somewhere else.
        folder = urls.local_path(target).parent.resolve()
        return os.path.relpath(urls.local_path(path).resolve(), folder)
    try:
        return urls.resolved(path, target)
    except ValueError as error:
        raise ConfigError(
            f"--output {redacted(target.rpartition('/')[0])} is on another disk or in another bucket than "
            f"{redacted(path)}, and a manifest names nothing outside its own bucket. Give an output beside the dataset."
        ) from error


def _line(document: Mapping[str, object]) -> bytes:
    try:
        return json.dumps(document, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape and UTF-8 cannot hold
        return json.dumps(document).encode() + b"\n"


def _file_names(paths: Iterable[str]) -> list[str]:
    """File names of paths from several folders; equal ones get a number: `a.npy`, `a-2.npy`."""
    taken: set[str] = set()
    result = []
    for path in paths:
        name = posixpath.basename(urls.file_path(path))
        stem, dot, suffix = name.rpartition(".")
        number, candidate = 1, name
        while candidate in taken:
            number += 1
            candidate = f"{stem or suffix}-{number}{dot}{suffix if dot else ''}"
        taken.add(candidate)
        result.append(candidate)
    return result
