"""Dataset manifests: JSON lines that name the arrays of each utterance pair.

Parsing is pure: text in, records out, and every bad line is reported. `data/checking.py` checks the arrays.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from indextts_job.bounds import Bounds
from indextts_job.errors import DataError, findings_message
from indextts_job.redaction import redacted
from indextts_job.storage.urls import file_path, resolved

_LANGUAGE_CODE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*")
_WHOLE = re.compile(r"\s*(\d{1,15})(\.0*)?\s*")
"""A length as some programs write it: pandas makes `5.0` or `"5"` of an integer column with missing values."""
_MOST_TOKENS = 10**15
_UNENCODABLE = re.compile("[\x00\ud800-\udfff]")
"""NUL, which no path may have, and halves of surrogate pairs, which have no UTF-8."""
SUFFIXES = (".jsonl", ".json")
"""Endings of manifests; a sharded dataset is a folder."""
LONGEST_SHOWN = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """The samples to train and validate on."""

    train_manifests: tuple[str, ...] = ()
    """Paired manifests, `path` or `path::language`, or folders of sharded datasets; paths or URLs, in this order."""
    validation_manifests: tuple[str, ...] = ()
    """The same for validation; empty = no validation."""
    skip_bad_samples: bool = False
    """Leave bad samples out of the dataset (named in the log, part of the fingerprint) instead of stopping."""
    cache_folder: str = ""
    """Local folder for copies of remote shards; empty = one below the temporary folder."""
    cache_free_ratio: Annotated[float, Bounds(0, 1, below=True)] = 0.0
    """Share of its disk that the copies leave free, at least 1 GiB. The kubelet evicts pods below 0.1."""


@dataclass(frozen=True, slots=True)
class ManifestSource:
    """A manifest and the language that its argument gives."""

    url: str
    language: str
    """Language code in lower case; empty if the argument gives none."""

    @property
    def shown(self) -> str:
        """The URL for messages, without the secrets of a signed link."""
        return redacted(self.url)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRecord:
    """One line of a paired manifest.

    The prompt has the conditioning array and the emotion vector, the target has the text ids and the codes.
    """

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
    line: int


def parse_source(argument: str, exists: Callable[[str], bool]) -> ManifestSource:
    """Split `path`, `path::am`, `path@am` or `path=am` into path and language.

    Args:
        argument: The argument of the user.
        exists: Whether a path or URL exists; called at most once.
    """
    # Each separator is looked for from the right. The suffix has to look like a language code, and after `@` or `=`
    # the whole argument must not exist: `data/lang=am/train.jsonl` and `s3://bucket/run@v2` are paths. The query of a
    # signed link is full of `=`, so there only `::` counts.
    separators = ("::", "@", "=") if file_path(argument) == argument else ("::",)
    for separator in separators:
        path, found, suffix = argument.rpartition(separator)
        if not found or not path or not _LANGUAGE_CODE.fullmatch(suffix.strip()):
            continue
        if separator != "::" and exists(argument):
            break
        return ManifestSource(path, suffix.strip().lower())
    return ManifestSource(argument, "")


def is_manifest(url: str) -> bool:
    """Whether a path or URL names a manifest by its ending, signed links included."""
    return file_path(url).endswith(SUFFIXES)


@dataclass(slots=True)
class ScannedManifest:
    """The good and the bad lines of a manifest."""

    records: list[PairRecord] = field(default_factory=list)
    documents: list[Mapping[str, object]] = field(default_factory=list)
    """All fields of each record, in the order of `records`."""
    malformed: list[str] = field(default_factory=list)
    """Findings about lines that are no records."""
    single: list[str] = field(default_factory=list)
    """Findings about lines that are records of single utterances."""


def scan_manifest(lines: Iterable[str], source: ManifestSource) -> ScannedManifest:
    """Parse every line of a manifest. Blank lines and unknown fields are ignored."""
    scanned = ScannedManifest()

    def keep(record: PairRecord, document: Mapping[str, object]) -> None:
        scanned.records.append(record)
        scanned.documents.append(document)

    _scan(lines, source, keep, scanned)
    return scanned


def parse_records(lines: Iterable[str], source: ManifestSource) -> list[PairRecord]:
    """All records of one manifest, as `each_record` gives them."""
    records: list[PairRecord] = []
    each_record(lines, source, records.append)
    return records


def each_record(lines: Iterable[str], source: ManifestSource, take: Callable[[PairRecord], object]) -> None:
    """Hand over the records of one manifest one by one.

    Args:
        lines: Its lines.
        source: The manifest.
        take: Called with each record. Records may have been handed over when the manifest turns out to be bad.

    Raises:
        DataError: Malformed lines, single instead of paired records, or no record at all. Names the lines.
    """
    scanned = ScannedManifest()
    taken = 0

    def count(record: PairRecord, _document: Mapping[str, object]) -> None:
        nonlocal taken
        taken += 1
        take(record)

    _scan(lines, source, count, scanned)
    if scanned.single:
        kind = "mixes single and paired records" if taken else "holds single records"
        raise DataError(
            findings_message(
                f"{source.shown} {kind} (training needs pairs)",
                scanned.single,
                "Make pairs from it with the pairing tool of your preprocessing (tools/build_gpt_prompt_pairs.py "
                "in the public repositories) and give the paired manifest.",
            )
        )
    if scanned.malformed:
        advice = "Repair or remove these lines; one JSON object per line is expected."
        raise DataError(findings_message(f"{source.shown} has malformed records", scanned.malformed, advice))
    if not taken:
        raise DataError(f"{source.shown}: no records. Expected one JSON object per line.")


Keep = Callable[[PairRecord, Mapping[str, object]], None]
"""Called with a record and all fields of its line."""


def _scan(lines: Iterable[str], source: ManifestSource, keep: Keep, scanned: ScannedManifest) -> None:
    shown = source.shown
    for number, line in enumerate(lines, start=1):
        if line.strip():
            _scan_line(line, (f"{shown}:{number}", number), source, keep, scanned)


def _scan_line(line: str, place: tuple[str, int], source: ManifestSource, keep: Keep, scanned: ScannedManifest) -> None:
    """Parse one line; hand its record over, or add it to the list that it belongs to."""
    origin, number = place
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        scanned.malformed.append(f"{origin}: not JSON ({error})")
        return
    if not isinstance(document, dict):
        scanned.malformed.append(f"{origin}: a JSON {type(document).__name__}, expected an object")
        return
    if "prompt_condition_path" not in document and "condition_path" in document:
        shown = _shown(document.get("id"))
        scanned.single.append(f"{origin}: id {shown} has condition_path, not prompt_condition_path")
        return
    try:
        record = _record(document, origin, number, source)
    except (KeyError, TypeError, ValueError) as error:
        scanned.malformed.append(f"{origin}: {error.args[0]}")
        return
    keep(record, document)


def _record(document: Mapping[str, object], origin: str, number: int, source: ManifestSource) -> PairRecord:
    emotion, language = _emotion_key(document), _language(document, source)
    return PairRecord(
        id=_text(document, "id"),
        condition_path=_path(document, "prompt_condition_path", source),
        emotion_path=_path(document, emotion, source),
        text_ids_path=_path(document, "target_text_ids_path", source),
        codes_path=_path(document, "target_codes_path", source),
        text_tokens=_length(document, "target_text_len"),
        code_tokens=_length(document, "target_code_len"),
        language=language,
        origin=origin,
        line=number,
    )


def _emotion_key(document: Mapping[str, object]) -> str:
    # The prompt's emotion counts; manifests without it have only the target's.
    for key in ("prompt_emo_vec_path", "target_emo_vec_path"):
        if document.get(key):
            return key
    raise TypeError("no emotion path: expected prompt_emo_vec_path or target_emo_vec_path")


def _language(document: Mapping[str, object], source: ManifestSource) -> str:
    language = document.get("target_language") or document.get("language") or source.language
    if not isinstance(language, str) or _UNENCODABLE.search(language):
        raise TypeError(f"the language is {_shown(language)}, expected a text")
    return language.strip().lower()


def _text(document: Mapping[str, object], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"{key} is {_shown(value)}, expected a non-empty string")
    if "\0" in value or (not value.isascii() and _UNENCODABLE.search(value)):
        raise ValueError(f"{key} is {_shown(value)}, which holds a NUL or half a character")
    return value


def _path(document: Mapping[str, object], key: str, source: ManifestSource) -> str:
    try:
        return resolved(_text(document, key), source.url)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _length(document: Mapping[str, object], key: str) -> int:
    value = document.get(key)
    if type(value) is int and 0 <= value < _MOST_TOKENS:  # the usual case, without a regular expression
        return value
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        match = _WHOLE.fullmatch(str(value))
        if match:
            return int(match[1])
    raise TypeError(f"{key} is {_shown(value)}, expected a whole number")


def _shown(value: object) -> str:
    """A wrong value for a message: shortened, and without secrets."""
    try:
        text = redacted(repr(value)[: 10 * LONGEST_SHOWN])
    except RecursionError:  # json parses deeper nesting than repr can print
        return f"a deep {type(value).__name__}"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
