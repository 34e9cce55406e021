"""The work list: the utterances of the manifests, in their order. Parsing is pure; every bad line is reported."""

import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from indextts_job.data.manifest import duration_of, language_of_record, text_of_record
from indextts_job.data.manifest_source import ManifestSource, parse_source
from indextts_job.errors import DataError, findings_message
from indextts_job.model.versions import ModelVersion
from indextts_job.prepare.config import PrepareConfig
from indextts_job.redaction import redacted
from indextts_job.storage import files
from indextts_job.storage.manifest_text import manifest_lines
from indextts_job.storage.urls import file_path, is_local, resolved

Split = Literal["train", "val", ""]
AUDIO_KEYS = ("audio", "audio_path")
SPLITS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
}
"""Words of corpora for the splits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """One line of a manifest."""

    id: str
    audio: str
    """The audio file as the manifest names it."""
    url: str
    """The path or URL to open."""
    text: str
    speaker: str
    language: str
    duration_s: float | None
    """As the manifest says; None if it does not."""
    split: Split
    """As the manifest says; empty if it does not."""
    origin: str
    """`file:line`, for messages."""

    @property
    def reference(self) -> str:
        """The audio file as the manifest names it, without what signs a link: that is secret, and another each time."""
        if is_local(self.url):
            return self.audio
        plain = self.audio.partition("?")[0]
        return redacted(plain) if "://" in plain else plain


@dataclass(frozen=True, slots=True)
class Reading:
    """How records are read."""

    version: ModelVersion
    audio_folder: str = ""
    speaker_from_name: bool = False


def read_utterances(config: PrepareConfig, version: ModelVersion) -> list[Utterance]:
    """All utterances of the manifests that a configuration names.

    Raises:
        DataError: A manifest is missing, a line is malformed, or an id occurs twice; names the lines.
    """
    reading = Reading(version, config.audio.folder, config.speaker == "from_name")
    utterances: list[Utterance] = []
    for argument in config.manifests:
        source = parse_source(argument, files.exists)
        utterances += parse_utterances(manifest_lines(files.read_manifest(source.url), source.shown), source, reading)
    _demand_distinct(utterances)
    return utterances


def parse_utterances(lines: Iterable[str], source: ManifestSource, reading: Reading) -> list[Utterance]:
    """The utterances of one manifest. Blank lines and unknown fields are ignored.

    Raises:
        DataError: A line is malformed, or there is none; names all such lines.
    """
    found: list[Utterance] = []
    malformed: list[str] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                found.append(_utterance(line, f"{source.shown}:{number}", source, reading))
            except (TypeError, ValueError, RecursionError) as error:
                malformed.append(f"{source.shown}:{number}: {error.args[0] if error.args else error}")
    if malformed:
        advice = "Repair or remove these lines; one JSON object with id, audio and text is expected per line."
        raise DataError(findings_message(f"{source.shown} has malformed records", malformed, advice))
    if not found:
        raise DataError(f"{source.shown}: no records. Expected one JSON object per line.")
    return found


def _utterance(line: str, origin: str, source: ManifestSource, reading: Reading) -> Utterance:
    document = json.loads(line)
    if not isinstance(document, dict):
        raise TypeError(f"a JSON {type(document).__name__}, expected an object")
    audio = text_of_record(document, next((key for key in AUDIO_KEYS if key in document), AUDIO_KEYS[0]))
    folder = reading.audio_folder
    return Utterance(
        id=text_of_record(document, "id"),
        audio=audio,
        url=resolved(audio, f"{folder.rstrip('/')}/audio" if folder else source.url),
        text=_optional(document, "text"),
        speaker=_optional(document, "speaker") or _named(audio, reading),
        language=language_of_record(document, source, reading.version),
        duration_s=_duration(document),
        split=_split(document),
        origin=origin,
    )


def _optional(document: Mapping[str, object], key: str) -> str:
    value = document.get(key)
    empty = value is None or (isinstance(value, str) and not value.strip())
    return "" if empty else text_of_record(document, key).strip()


def _duration(document: Mapping[str, object]) -> float | None:
    value, seconds = document.get("duration"), duration_of(document)
    if value is not None and seconds is None:
        raise ValueError(f"duration is {value!r:.40}, expected a positive number of seconds, or no duration")
    return seconds


def _named(audio: str, reading: Reading) -> str:
    """The speaker in a file name, as the public pairing tool reads it: up to the first `_`, behind a `JA_`."""
    stem = posixpath.basename(file_path(audio)).rpartition(".")[0].removeprefix("JA_")
    return stem.partition("_")[0] if reading.speaker_from_name and "_" in stem else ""


def _split(document: Mapping[str, object]) -> Split:
    word = document.get("split")
    if word in (None, ""):
        return ""
    if not isinstance(word, str) or word.lower() not in SPLITS:
        raise ValueError(f"split is {word!r:.40}, expected train or val")
    return SPLITS[word.lower()]


def _demand_distinct(utterances: Sequence[Utterance]) -> None:
    first: dict[str, Utterance] = {}
    doubled = [
        f"{utterance.origin}: id {utterance.id}, as in {earlier.origin}"
        for utterance in utterances
        if (earlier := first.setdefault(utterance.id, utterance)) is not utterance
    ]
    if doubled:
        advice = "An id names one utterance: pairs, splits and refusals are kept by it. Rename or remove these."
        raise DataError(findings_message("ids occur twice in the manifests", doubled, advice))
