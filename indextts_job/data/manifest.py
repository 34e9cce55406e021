"""Dataset manifests: JSON lines that name the arrays of each utterance pair.

Parsing is pure: text in, records out, every bad line named. Whether the arrays exist and hold what the record says
is `data/dataset.py`'s concern.
"""

import json
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from indextts_job.errors import DataError, findings_message

_LANGUAGE_CODE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which samples are trained and validated on."""

    train_manifests: tuple[str, ...] = ()
    """Paired manifests, `path` or `path::language`, or folders of sharded datasets; paths or URLs, in this order."""
    validation_manifests: tuple[str, ...] = ()
    """The same for validation; empty = no validation."""
    skip_bad_samples: bool = False
    """Leave bad samples out of the dataset (named in the log, part of the fingerprint) instead of stopping."""
    cache_folder: str = ""
    """Local folder for copies of remote shards; empty = one below the temporary folder."""
    cache_free_ratio: float = 0.0
    """Share of its disk that the copies leave free, at least 1 GiB. The kubelet evicts pods below 0.1."""


@dataclass(frozen=True, slots=True)
class ManifestSource:
    """A manifest argument taken apart."""

    url: str
    language: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRecord:
    """One line of a paired manifest: the prompt gives condition and emotion, the target text and codes."""

    id: str
    condition_path: str
    emotion_path: str
    text_ids_path: str
    codes_path: str
    text_tokens: int
    code_tokens: int
    language: str
    origin: str
    """`file:line`, for messages."""


def parse_source(argument: str, exists: Callable[[str], bool]) -> ManifestSource:
    """Take `path`, `path::am`, `path@am` or `path=am` apart.

    The separators are tried in this order and split at their last occurrence. The suffix counts only when it looks
    like a language code, and behind `@` and `=` only when the whole argument is not itself something that exists:
    `data/lang=am/train.jsonl` and `s3://bucket/run@v2` are paths.

    Args:
        argument: What the user gave.
        exists: Whether a path or URL exists; asked at most once.
    """
    for separator in ("::", "@", "="):
        path, found, suffix = argument.rpartition(separator)
        if not found or not path or not _LANGUAGE_CODE.fullmatch(suffix.strip()):
            continue
        if separator != "::" and exists(argument):
            break
        return ManifestSource(path, suffix.strip().lower())
    return ManifestSource(argument, "")


def resolve_path(path: str, manifest_url: str) -> str:
    """A path of a record: absolute paths and URLs as they are, others relative to the manifest's folder."""
    if _URL.match(path) or path.startswith("/"):
        return path
    return posixpath.join(posixpath.dirname(manifest_url), path)


@dataclass(slots=True)
class ScannedManifest:
    """What the lines of a manifest hold, the bad ones too."""

    records: list[PairRecord] = field(default_factory=list)
    documents: list[Mapping[str, object]] = field(default_factory=list)
    """All fields of each record."""
    malformed: list[str] = field(default_factory=list)
    """Lines that are no records, and why."""
    single: list[str] = field(default_factory=list)
    """Lines that are records of single utterances."""


def scan_manifest(lines: Iterable[str], source: ManifestSource) -> ScannedManifest:
    """Every line of a manifest. Blank lines and unknown fields are ignored."""
    scanned = ScannedManifest()
    for number, line in enumerate(lines, start=1):
        if line.strip():
            _scan_line(line, f"{source.url}:{number}", source, scanned)
    return scanned


def parse_records(lines: Iterable[str], source: ManifestSource) -> list[PairRecord]:
    """All records of one manifest.

    Raises:
        DataError: Malformed lines, single instead of paired records, or no record at all. Names every line.
    """
    scanned = scan_manifest(lines, source)
    if scanned.single:
        kind = "mixes single and paired records" if scanned.records else "holds single records"
        raise DataError(
            findings_message(
                f"{source.url} {kind} (training needs pairs)",
                scanned.single,
                "Make pairs from it with the pairing tool of your preprocessing (tools/build_gpt_prompt_pairs.py "
                "in the public repositories) and give the paired manifest.",
            )
        )
    if scanned.malformed:
        advice = "Repair or remove these lines; one JSON object per line is expected."
        raise DataError(findings_message(f"{source.url} has malformed records", scanned.malformed, advice))
    if not scanned.records:
        raise DataError(f"{source.url}: no records. Expected one JSON object per line.")
    return scanned.records


def _scan_line(line: str, origin: str, source: ManifestSource, scanned: ScannedManifest) -> None:
    try:
        document = json.loads(line)
    except ValueError as error:
        scanned.malformed.append(f"{origin}: not JSON ({error})")
        return
    if not isinstance(document, dict):
        scanned.malformed.append(f"{origin}: a JSON {type(document).__name__}, expected an object")
        return
    if "prompt_condition_path" not in document and "condition_path" in document:
        scanned.single.append(f"{origin}: id {document.get('id')!r} has condition_path, not prompt_condition_path")
        return
    try:
        record = _record(document, origin, source)
    except (KeyError, TypeError, ValueError) as error:
        scanned.malformed.append(f"{origin}: {error.args[0]}")
        return
    scanned.records.append(record)
    scanned.documents.append(document)


def _record(document: Mapping[str, object], origin: str, source: ManifestSource) -> PairRecord:
    emotion = document.get("prompt_emo_vec_path") or document.get("target_emo_vec_path")
    if not isinstance(emotion, str):
        raise TypeError("no emotion path: expected prompt_emo_vec_path or target_emo_vec_path")
    language = document.get("target_language") or document.get("language") or source.language
    return PairRecord(
        id=_text(document, "id"),
        condition_path=resolve_path(_text(document, "prompt_condition_path"), source.url),
        emotion_path=resolve_path(emotion, source.url),
        text_ids_path=resolve_path(_text(document, "target_text_ids_path"), source.url),
        codes_path=resolve_path(_text(document, "target_codes_path"), source.url),
        text_tokens=_length(document, "target_text_len"),
        code_tokens=_length(document, "target_code_len"),
        language=str(language).strip().lower(),
        origin=origin,
    )


def _text(document: Mapping[str, object], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str) or not value:
        raise TypeError(f"{key} is {value!r}, expected a non-empty string")
    return value


def _length(document: Mapping[str, object], key: str) -> int:
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"{key} is {value!r}, expected a whole number")
    return value
