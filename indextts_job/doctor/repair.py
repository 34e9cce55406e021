"""A dataset without padded code tails, written beside the one that has them: the input is never changed.

Only arrays that are cut are written; everything else is named where it lies. So the new manifests stand at the place
of the old ones: on a local disk, or in the same bucket.
"""

import io
import json
import os
import posixpath
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from indextts_job.data.checking import check_ids
from indextts_job.data.manifest import PairRecord, parse_source, scan_manifest
from indextts_job.doctor.findings import Finding, data_finding
from indextts_job.doctor.survey import Survey
from indextts_job.doctor.tails import Tail, padded_tails
from indextts_job.errors import ConfigError, DataError
from indextts_job.redaction import redacted
from indextts_job.storage import files, urls
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.run_storage import RunStorage

WRITERS = 16
"""Arrays written at a time; hides the latency of remote storage."""
_PATHS = {
    "prompt_condition_path": "condition_path",
    "target_text_ids_path": "text_ids_path",
    "target_codes_path": "codes_path",
}
"""Keys of a manifest and the fields of a record that hold them resolved; the emotion has two keys."""
_EMOTIONS = ("prompt_emo_vec_path", "target_emo_vec_path")


def drop_tails(found: Survey, manifests: Sequence[str], output: str) -> Finding:
    """Write manifests and cut codes into an empty folder.

    Args:
        found: What the manifests hold.
        manifests: The same arguments that it was made of, training and validation.
        output: Folder or URL.

    Returns:
        What was done.

    Raises:
        ConfigError: The output holds something, or lies where its manifests could not name the arrays.
        DataError: A manifest has lines that are no pairs.
    """
    if found.malformed or found.single:
        raise DataError(
            "the manifests have lines that are no pairs: repair or remove these first, nothing was written."
        )
    output = output.rstrip("/")
    storage = open_storage(output)
    if storage.list("") or storage.list("codes"):
        raise ConfigError(f"--output {redacted(output)} is not empty. Give a new folder; nothing is overwritten.")
    good = [pair for pair in found.pairs if not found.arrays[pair.record.codes_path].fault]
    tails = padded_tails(good, found)
    if not tails:
        return data_finding("repair", "ok", "no padded code tails that durations tell of: nothing was written")
    names = _unique([posixpath.basename(urls.file_path(path)) for path in tails])
    cut = {path: f"codes/{name}" for path, name in zip(tails, names, strict=True)}
    sources = [parse_source(argument, files.exists) for argument in manifests]
    targets = _unique([posixpath.basename(urls.file_path(source.url)) for source in sources])
    texts = []
    for source, target in zip(sources, targets, strict=True):
        scanned = scan_manifest(files.lines_of(files.read_manifest_text(source.url)), source)
        rows = zip(scanned.records, scanned.documents, strict=True)
        texts.append(_text([_document(record, row, cut, tails, f"{output}/{target}") for record, row in rows]))
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda path: storage.write(cut[path], _cut(path, tails[path], found)), tails))
    # Last: a folder with a manifest is complete.
    for target, text in zip(targets, texts, strict=True):
        storage.write(target, text)
    return _done(storage, targets, tails)


def _done(storage: RunStorage, targets: Sequence[str], tails: Mapping[str, Tail]) -> Finding:
    codes = sum(tail.codes - tail.speech for tail in tails.values())
    text = f"{len(tails)} code arrays cut by {codes} codes in all; {', '.join(targets)} written to {storage.url}"
    advice = "Train with these manifests. Everything that was not cut is named where it lies; keep it there."
    return Finding(subject="repair", level="ok", found=text, advice=advice, details=tuple(map(str, tails.values())))


def _cut(path: str, tail: Tail, found: Survey) -> bytes:
    ids = check_ids(path, found.model.number_codes, found.model.max_mel_tokens, "code")
    stream = io.BytesIO()
    np.save(stream, ids.values[: tail.speech])
    return stream.getvalue()


def _document(
    record: PairRecord, document: Mapping[str, object], cut: Mapping[str, str], tails: Mapping[str, Tail], target: str
) -> dict[str, object]:
    """A line of the new manifest: all fields of the old one, paths seen from the new place."""
    changed = dict(document)
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
    """A path as the new manifest names it."""
    if urls.is_local(path) and urls.is_local(target):
        # Both without links, so that `..` means what it seems to.
        folder = urls.local_path(target).parent.resolve()
        return os.path.relpath(urls.local_path(path).resolve(), folder)
    try:
        return urls.resolved(path, target)
    except ValueError as error:
        raise ConfigError(
            f"--output {redacted(target.rpartition('/')[0])} lies elsewhere than {redacted(path)}, and a manifest "
            "names nothing outside its own bucket. Give an output beside the dataset."
        ) from error


def _text(documents: Sequence[Mapping[str, object]]) -> bytes:
    lines = []
    for document in documents:
        try:
            lines.append(json.dumps(document, ensure_ascii=False).encode())
        except UnicodeEncodeError:  # half of a surrogate pair somewhere: JSON can spell it, UTF-8 cannot
            lines.append(json.dumps(document).encode())
    return b"".join(line + b"\n" for line in lines)


def _unique(names: Sequence[str]) -> list[str]:
    """File names that may come from several folders, made different: `a.npy`, `a-2.npy`."""
    taken: set[str] = set()
    result = []
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        number, candidate = 1, name
        while candidate in taken:
            number += 1
            candidate = f"{stem or suffix}-{number}{dot}{suffix if dot else ''}"
        taken.add(candidate)
        result.append(candidate)
    return result
