"""Write a copy of a dataset with some arrays changed. The input is never changed.

Only what changes is written. The new manifests name everything else where it is, so the output has to be on the same
disk or in the same bucket as the dataset.
"""

import io
import json
import os
import posixpath
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from indextts_job.data.archives import LARGEST_ARCHIVE_BYTES, archive_of
from indextts_job.data.checking import wrong_language
from indextts_job.data.manifest import PairRecord, scan_manifest
from indextts_job.data.manifest_source import ManifestSource, parse_source
from indextts_job.doctor.findings import Finding, data_finding
from indextts_job.doctor.repairs import Change, Changes, Repair, Row, changes_of
from indextts_job.doctor.survey import Survey
from indextts_job.errors import ConfigError, DataError, findings_message
from indextts_job.model.languages import language_of
from indextts_job.redaction import redacted
from indextts_job.storage import files, urls
from indextts_job.storage.manifest_text import lines_of, read_manifest_text
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.run_storage import RunStorage
from indextts_job.tokenizer.loading import Tokenizer

WRITERS = 16
"""Number of arrays written at a time, to hide the latency of remote storage."""
_PATHS = (
    *("prompt_condition_path", "prompt_speaker_path", "target_text_ids_path", "target_codes_path"),
    *("prompt_emo_vec_path", "target_emo_vec_path", "target_features", "prompt_features"),
)
"""Keys of a manifest that name files."""
_LANGUAGES = ("target_language", "language", "lang", "lang_alias")
_LENGTHS = {"text": ("target_text_len", "text_len"), "codes": ("target_code_len", "code_len")}
"""Keys of the lengths of a record's arrays; the first one that a line has counts."""
Document = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A repair that somebody asks for."""

    kind: Repair
    manifests: Sequence[str]
    """Training and validation."""
    output: str
    """Folder or URL."""
    language: str = ""
    """Language of all records, as `am` or `az:tt`; empty = as they say."""


@dataclass(frozen=True, slots=True)
class _Manifest:
    """A manifest with its lines as they will be."""

    source: ManifestSource
    documents: Sequence[Document]
    records: Sequence[PairRecord]


def repair(order: Order, found: Survey, tokenizer: Tokenizer) -> Finding:
    """Write manifests and changed arrays into an empty folder.

    Args:
        order: What is asked for.
        found: The content of the manifests and their arrays.
        tokenizer: The tokenizer that training will use.

    Returns:
        A finding that says what was written.

    Raises:
        ConfigError: The output is not empty, or manifests there could not name the arrays.
        DataError: Lines are no pairs, or cannot be repaired; names them.
    """
    if order.language:
        _demand_language(order.language)
    output = order.output.rstrip("/")
    storage = _empty_storage(output)
    manifests = [_read(argument, order.language, found) for argument in order.manifests]
    rows = [Row(record=record, text=_text(document)) for record, document in _lines(manifests)]
    changes = changes_of(order.kind, rows, found, tokenizer)
    if order.kind == "set-language":
        targets = _write(manifests, changes, storage, output)
        return _with_contradictions(_done(order.kind, storage, targets, changes), rows, found)
    if not changes:
        return data_finding("repair", "ok", f"{order.kind}: nothing to change, nothing was written")
    return _done(order.kind, storage, _write(manifests, changes, storage, output), changes)


def _write(manifests: Sequence[_Manifest], changes: Changes, storage: RunStorage, output: str) -> Sequence[str]:
    """Write changed files and all manifests; returns the names of the manifests."""
    containers = _containers(changes)
    names = dict(zip(containers, _new_names(containers), strict=True))
    targets = _file_names([manifest.source.url for manifest in manifests])
    lengths = {path: len(change.values()) for path, change in changes.items()}
    # The texts come first: they fail where a path cannot be named from the output, before anything is written.
    texts = {
        target: _manifest_text(manifest, f"{output}/{target}", names, lengths)
        for manifest, target in zip(manifests, targets, strict=True)
    }
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda one: storage.write(names[one], _content(one, containers[one])), containers))
    # The manifests come last, so that a folder with a manifest is complete.
    for target, text in texts.items():
        storage.write(target, text)
    return targets


def _manifest_text(manifest: _Manifest, target: str, names: Mapping[str, str], lengths: Mapping[str, int]) -> bytes:
    pairs = zip(manifest.records, manifest.documents, strict=True)
    places = manifest.source, target
    return b"".join(_line(_document(record, document, places, names, lengths)) for record, document in pairs)


def _demand_language(label: str) -> None:
    try:
        language_of(label)
    except ValueError as error:
        raise ConfigError(f"--language: {error}.") from error


def _read(argument: str, language: str, found: Survey) -> _Manifest:
    source = parse_source(argument, files.exists)
    lines = lines_of(read_manifest_text(source.url))
    if language:
        lines = [_line(_with_language(line, language)).decode() if line.strip() else line for line in lines]
        source = ManifestSource(source.url, "")
    scanned = scan_manifest(lines, source, found.limits.rules)
    if bad := scanned.malformed + scanned.single:
        advice = "Repair or remove these first; nothing was written."
        raise DataError(findings_message("the manifests have lines that are no pairs", bad, advice))
    return _Manifest(source, [dict(document) for document in scanned.documents], scanned.records)


def _with_language(line: str, label: str) -> Document:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return {"not JSON": line}  # named by the scan
    if not isinstance(document, dict):
        return {"not JSON": line}
    language = language_of(label)
    kept = {key: value for key, value in document.items() if key not in _LANGUAGES}
    alias = {"lang_alias": language.slot} if language.slot != language.name else {}
    return {**kept, "language": language.name, **alias}


def _lines(manifests: Sequence[_Manifest]) -> Iterator[tuple[PairRecord, Document]]:
    for manifest in manifests:
        yield from zip(manifest.records, manifest.documents, strict=True)


def _text(document: Document) -> str:
    value = document.get("target_text") or document.get("text")
    return value if isinstance(value, str) else ""


def _empty_storage(output: str) -> RunStorage:
    storage = open_storage(output)
    if any(storage.list(folder) for folder in ("", "codes", "text_ids", "features")):
        raise ConfigError(f"--output {redacted(output)} is not empty. Give a new folder; nothing is overwritten.")
    return storage


def _done(kind: str, storage: RunStorage, targets: Sequence[str], changes: Changes) -> Finding:
    text = f"{kind}: {len(changes)} arrays changed; {', '.join(targets)} written to {storage.url}"
    advice = "Train with these manifests. They name all other arrays at their old place, so keep the old dataset."
    details = tuple(change.where for change in changes.values())
    return Finding(subject="repair", level="ok", found=text, advice=advice, details=details)


def _with_contradictions(done: Finding, rows: Sequence[Row], found: Survey) -> Finding:
    """Tell of texts that begin with the token of another language than their record has now."""
    others = []
    for row in rows:
        seen = found.arrays.get(row.record.text_ids_path)
        if seen and not seen.fault and (fault := wrong_language(row.record.language, seen.first, found.limits)):
            others.append(f"{row.where}: {fault}")
    if not others:
        return done
    text = f"{done.found}; {len(others)} texts begin with the token of another language, so training refuses them"
    return replace(
        done, level="warning", found=text, advice="Encode them again: --repair re-encode.", details=tuple(others)
    )


def _containers(changes: Changes) -> dict[str, dict[str, Change]]:
    """The files that change: for each of them its changed members by name; one without a name for an array's file."""
    containers: dict[str, dict[str, Change]] = {}
    for path, change in changes.items():
        archive = archive_of(path)
        containers.setdefault(archive or path, {})[posixpath.basename(path) if archive else ""] = change
    return containers


def _new_names(containers: Mapping[str, Mapping[str, Change]]) -> list[str]:
    """The places of the changed files below the output: the last folder of each, and its name."""
    folders = [posixpath.basename(posixpath.dirname(urls.file_path(path))) or "arrays" for path in containers]
    names: dict[str, Iterator[str]] = {}
    for folder in set(folders):
        names[folder] = iter(_file_names(p for p, of in zip(containers, folders, strict=True) if of == folder))
    return [f"{folder}/{next(names[folder])}" for folder in folders]


def _content(path: str, members: Mapping[str, Change]) -> bytes:
    """The new bytes of a file of an array, or of an archive with all its other members as they are."""
    if "" in members:
        return _npy(members[""])
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(files.read_bytes(path, LARGEST_ARCHIVE_BYTES))) as old,
        zipfile.ZipFile(stream, "w") as new,
    ):
        for name in old.namelist():
            if name in members:
                new.writestr(name, _npy(members[name]))
            elif old.getinfo(name).file_size <= LARGEST_ARCHIVE_BYTES:
                new.writestr(name, old.read(name))
            else:
                raise DataError(f"{redacted(path)}: {name} has {old.getinfo(name).file_size} bytes unpacked.")
    return stream.getvalue()


def _npy(change: Change) -> bytes:
    stream = io.BytesIO()
    np.save(stream, change.values())
    return stream.getvalue()


def _document(
    record: PairRecord,
    document: Document,
    places: tuple[ManifestSource, str],
    names: Mapping[str, str],
    lengths: Mapping[str, int],
) -> Document:
    """A line of the new manifest: all fields of the old one, with paths relative to the new manifest.

    Args:
        record: The old line as a record.
        document: All its fields; those that we do not know are kept.
        places: The old manifest, and path or URL of the new one.
        names: Changed files below the output, by their old paths.
        lengths: New lengths of changed arrays, by their old paths.
    """
    source, target = places
    changed = dict(document)
    for key in _PATHS:
        value = document.get(key)
        if isinstance(value, str) and value.strip():
            path = urls.resolved(value, source.url)
            changed[key] = names[path] if path in names else _seen_from(path, target)
    for use, path in (("text", record.text_ids_path), ("codes", record.codes_path)):
        if path in lengths:
            key = next((key for key in _LENGTHS[use] if key in document), _LENGTHS[use][0])
            changed[key] = lengths[path]
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


def _line(document: Document) -> bytes:
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
