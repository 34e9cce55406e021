"""Dataset manifests: JSON lines that name the arrays of each utterance pair.

A pair names a file for each array, or an archive for each utterance. Which fields it has to have follows from the
version of the model. Parsing is pure: text in, records out, and every bad line is reported. `data/checking.py` checks
the arrays.
"""

import json
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from indextts_job.bounds import Bounds
from indextts_job.data.archives import archive_of, member_of
from indextts_job.data.manifest_source import ManifestSource
from indextts_job.data.mixture_config import DatasetConfig, WeightsConfig
from indextts_job.errors import DataError, findings_message
from indextts_job.model.languages import code_of, language_of
from indextts_job.model.versions import V2_0, V2_5, ModelVersion
from indextts_job.redaction import redacted
from indextts_job.storage.urls import resolved

_WHOLE = re.compile(r"\s*(\d{1,15})(\.0*)?\s*")
"""A length as some programs write it: pandas makes `5.0` or `"5"` of an integer column with missing values."""
_MOST_TOKENS = 10**15
_UNENCODABLE = re.compile("[\x00\ud800-\udfff]")
"""NUL, which no path may have, and halves of surrogate pairs, which have no UTF-8."""
LONGEST_SHOWN = 200
LONGEST_CLIP_S = 1e6
"""A longer duration is a wrong value, and is treated as unknown."""
Emotion = Literal["prompt", "target"]
"""The utterance of a pair whose emotion vector is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """The samples to train and validate on."""

    train_manifests: tuple[str, ...] = ()
    """Paired manifests, `path` or `path::language`, or folders of sharded datasets; paths or URLs, in this order. They
    are one source together; with weights, `path::language@weight`, each is a source of a mixture."""
    datasets: tuple[DatasetConfig, ...] = ()
    """Instead of train_manifests, the sources of a mixture, the main one first, each with these keys: manifest;
    language of records that do not say theirs; weight, its share of the stream in any unit; name, for the log."""
    mixture_from_step: tuple[WeightsConfig, ...] = ()
    """Later changes of the weights, which a run that has begun accepts from its checkpoint's step on: a list of
    {step, weights}, with one weight for each source. Turns go on, so nothing is repeated."""
    validation_manifests: tuple[str, ...] = ()
    """The same for validation; empty = no validation."""
    skip_bad_samples: bool = False
    """Leave bad samples out of the dataset (named in the log, part of the fingerprint) instead of stopping."""
    emotion: Emotion = "prompt"
    """Whose emotion vector a pair is trained with: the prompt's, as at inference, or the target's."""
    self_pairs: bool = False
    """Accept pairs whose prompt is their target, which IndexTTS-2.5 data is otherwise refused for: the model sees the
    answer."""
    cache_folder: str = ""
    """Local folder for copies of remote shards; empty = one below the temporary folder."""
    cache_free_ratio: Annotated[float, Bounds(0, 1, below=True)] = 0.0
    """Share of its disk that the copies leave free, at least 1 GiB. The kubelet evicts pods below 0.1."""


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
    speaker: str = ""
    """Speaker of the target; empty if the line does not say."""
    duration_s: float | None = None
    """Duration of the target's audio."""
    self_pair: bool = False
    """Whether the prompt is the target."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How a manifest is read."""

    version: ModelVersion = V2_0
    emotion: Emotion = "prompt"
    self_pairs: bool = False
    """Whether a pair's prompt may be its target."""


_AS_2_0 = Rules()
_PAIRED = "__"
_ARCHIVED = ("target_features", "prompt_features")
STYLES = {"prompt_condition_path": V2_0, "prompt_speaker_path": V2_5, **dict.fromkeys(_ARCHIVED, V2_5)}
"""The key that tells how a record names its arrays, and the version of the model that such data is for."""
_SINGLE = {
    "condition_path": "prompt_condition_path",
    "speaker_path": "prompt_speaker_path",
    "features": "target_features and prompt_features",
}
"""The keys of single utterances, and those that a pair has instead."""


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
    style: str = ""
    """Key of the first record that names its arrays; a manifest has one style."""


def scan_manifest(lines: Iterable[str], source: ManifestSource, rules: Rules = _AS_2_0) -> ScannedManifest:
    """Parse every line of a manifest. Blank lines and unknown fields are ignored."""
    scanned = ScannedManifest()

    def keep(record: PairRecord, document: Mapping[str, object]) -> None:
        scanned.records.append(record)
        scanned.documents.append(document)

    _scan(lines, source, keep, scanned, rules)
    return scanned


def parse_records(lines: Iterable[str], source: ManifestSource, rules: Rules = _AS_2_0) -> list[PairRecord]:
    """All records of one manifest, as `each_record` gives them."""
    records: list[PairRecord] = []
    each_record(lines, source, records.append, rules)
    return records


def each_record(
    lines: Iterable[str], source: ManifestSource, take: Callable[[PairRecord], object], rules: Rules = _AS_2_0
) -> None:
    """Hand over the records of one manifest one by one.

    Args:
        lines: Its lines.
        source: The manifest.
        rules: How it is read.
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

    _scan(lines, source, count, scanned, rules)
    if scanned.single:
        kind = "mixes single and paired records" if taken else "holds single records"
        raise DataError(
            findings_message(
                f"{source.shown} {kind} (training needs pairs)",
                scanned.single,
                "Make pairs from it with the pairing tool of your preprocessing (tools/build_gpt_prompt_pairs.py or "
                "scripts/build_pairs.py in the public repositories) and give the paired manifest.",
            )
        )
    if scanned.malformed:
        advice = "Repair or remove these lines; one JSON object per line is expected."
        raise DataError(findings_message(f"{source.shown} has malformed records", scanned.malformed, advice))
    if not taken:
        raise DataError(f"{source.shown}: no records. Expected one JSON object per line.")


Keep = Callable[[PairRecord, Mapping[str, object]], None]
"""Called with a record and all fields of its line."""


def _scan(lines: Iterable[str], source: ManifestSource, keep: Keep, scanned: ScannedManifest, rules: Rules) -> None:
    shown = source.shown
    for number, line in enumerate(lines, start=1):
        if line.strip():
            _scan_line(line, (f"{shown}:{number}", number), source, keep, scanned, rules)


def _scan_line(  # the line, and what reading it needs
    line: str, place: tuple[str, int], source: ManifestSource, keep: Keep, scanned: ScannedManifest, rules: Rules
) -> None:
    """Parse one line; hand its record over, or add it to the list that it belongs to."""
    origin, number = place
    try:
        document = _object(line)
    except (ValueError, TypeError) as error:
        scanned.malformed.append(f"{origin}: {error}")
        return
    style = next((key for key in STYLES if key in document), "")
    single = next((key for key in _SINGLE if key in document), "")
    if not style and single:
        scanned.single.append(f"{origin}: id {_shown(document.get('id'))} has {single}, not {_SINGLE[single]}")
        return
    try:
        scanned.style = _demand_style(style, scanned.style, rules.version)
        record = _record(document, origin, number, source, rules)
    except (KeyError, TypeError, ValueError) as error:
        named = f" (id {_plain(document['id'])})" if isinstance(document.get("id"), str) else ""
        scanned.malformed.append(f"{origin}{named}: {error.args[0]}")
        return
    keep(record, document)


def _object(line: str) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(document, dict):
        raise TypeError(f"a JSON {type(document).__name__}, expected an object")
    return document


def _demand_style(style: str, first: str, version: ModelVersion) -> str:
    """The style of a manifest, after another record of this style."""
    of = STYLES.get(style)
    if of not in (None, version):
        raise TypeError(f"a record of {of} ({style}), but the model is {version}. Give data of the model's version")
    if style and first and style != first:
        raise TypeError(f"a record with {style}, those before have {first}. Give each style a manifest of its own")
    return first or style


def _record(
    document: Mapping[str, object], origin: str, number: int, source: ManifestSource, rules: Rules
) -> PairRecord:
    archived = any(key in document for key in _ARCHIVED)
    paths = _archived(document, source, rules) if archived else _separate(document, source, rules)
    lengths = ("text_len", "code_len"), ("target_text_len", "target_code_len")
    own, other = lengths if archived else lengths[::-1]
    return PairRecord(
        id=text_of_record(document, "id"),
        condition_path=paths["condition"],
        emotion_path=paths["emotion"],
        text_ids_path=paths["text"],
        codes_path=paths["codes"],
        text_tokens=_length(document, own[0], other[0]),
        code_tokens=_length(document, own[1], other[1]),
        language=language_of_record(document, source, rules.version),
        origin=origin,
        line=number,
        speaker=_text_or_nothing(document, "target_speaker") or _text_or_nothing(document, "speaker"),
        duration_s=duration_of(document),
        self_pair=_self_pair(document, paths, rules),
    )


def _self_pair(document: Mapping[str, object], paths: Mapping[str, str], rules: Rules) -> bool:
    """Whether the prompt is the target; refused where the version does, unless the settings accept it."""
    if not _is_self_pair(document, paths):
        return False
    if rules.version.ranks and not rules.self_pairs:
        missing = archive_of(paths["codes"]) and not document.get("prompt_features")
        raise TypeError(
            f"{'there is no prompt_features, so ' if missing else ''}the prompt is the target, so the model would see "
            "the answer. Pair it with another utterance of its speaker; data.self_pairs=true accepts such pairs"
        )
    return True


def _separate(document: Mapping[str, object], source: ManifestSource, rules: Rules) -> dict[str, str]:
    """The paths of a record with a file for each array."""
    condition = "prompt_speaker_path" if rules.version.speaker_width else "prompt_condition_path"
    keys = {
        "text": "target_text_ids_path",
        "codes": "target_codes_path",
        "condition": condition,
        "emotion": _emotion_key(document, rules.emotion),
    }
    return {use: _path(document, key, source) for use, key in keys.items()}


def _archived(document: Mapping[str, object], source: ManifestSource, rules: Rules) -> dict[str, str]:
    """The same of a record with an archive for each utterance."""
    target = _path(document, "target_features", source)
    # The public trainer takes the target where no prompt is named: a pair with itself.
    prompt = _path(document, "prompt_features", source) if document.get("prompt_features") else target
    return {
        "text": member_of(target, "text"),
        "codes": member_of(target, "codes"),
        "condition": member_of(prompt, "condition"),
        "emotion": member_of(target if rules.emotion == "target" else prompt, "emotion"),
    }


def _is_self_pair(document: Mapping[str, object], paths: Mapping[str, str]) -> bool:
    archive = archive_of(paths["codes"])
    if archive:
        # Utterances of several corpora may have one name, so only the archives count.
        return posixpath.normpath(archive) == posixpath.normpath(archive_of(paths["condition"]) or "")
    names = (document.get("target_id"), document.get("prompt_id"))
    if all(names):
        return names[0] == names[1]
    if posixpath.basename(paths["codes"]) == posixpath.basename(paths["condition"]):
        return True  # files are named by their utterances
    # The pairing tools name a pair TARGET__PROMPT; ids may hold the separator themselves.
    name = str(document.get("id"))
    half = (len(name) - len(_PAIRED)) // 2
    audio = (document.get("target_audio_path"), document.get("prompt_audio_path"))
    return name == f"{name[:half]}{_PAIRED}{name[:half]}" or bool(audio[0] and audio[0] == audio[1])


def _emotion_key(document: Mapping[str, object], emotion: Emotion) -> str:
    if emotion == "target":
        return "target_emo_vec_path"
    # The prompt's emotion counts; manifests without it have only the target's.
    for key in ("prompt_emo_vec_path", "target_emo_vec_path"):
        if document.get(key):
            return key
    raise TypeError("no emotion path: expected prompt_emo_vec_path or target_emo_vec_path")


def language_of_record(document: Mapping[str, object], source: ManifestSource, version: ModelVersion) -> str:
    """The language of a record in its canonical form, with the slot that it borrows; empty if none is said.

    Args:
        document: The fields of the record.
        source: The manifest, whose argument may give a language.
        version: The version of the model.

    Raises:
        TypeError: It is no text.
        ValueError: The model has no such language, or record and argument contradict each other.
    """
    keys = ("target_language", "language", "lang")
    language = next((document[key] for key in keys if document.get(key)), source.language)
    if not isinstance(language, str) or _UNENCODABLE.search(language):
        raise TypeError(f"the language is {_shown(language)}, expected a text")
    name = language.strip().lower()
    return _slotted(name, document, source) if version.language_rows else name


def _slotted(name: str, document: Mapping[str, object], source: ManifestSource) -> str:
    """The language of a record and the slot of the model that it uses; where both are one, its code."""
    given, _, borrowed = source.language.partition(":")
    alias = document.get("lang_alias")
    if isinstance(alias, str) and alias.strip():
        borrowed = alias
    language = language_of(name if ":" in name or not borrowed.strip() else f"{name}:{borrowed}")
    if given and code_of(given) != language.name:
        raise ValueError(f"the record's language is {name}, the manifest's argument says {given}. Correct one of them")
    return str(language)


def duration_of(document: Mapping[str, object]) -> float | None:
    """Duration of a record's target in seconds; None if the line does not say."""
    value = next((document[key] for key in ("target_duration", "duration") if document.get(key) is not None), None)
    try:
        seconds = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else 0.0
    except (ValueError, OverflowError):
        return None
    return seconds if 0 < seconds < LONGEST_CLIP_S else None


def _text_or_nothing(document: Mapping[str, object], key: str) -> str:
    value = document.get(key)
    return value if isinstance(value, str) else ""


def text_of_record(document: Mapping[str, object], key: str) -> str:
    """A field of a record that holds text.

    Raises:
        TypeError: It is missing, empty or no text.
        ValueError: It holds a character that no path and no UTF-8 has.
    """
    value = document.get(key)
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"{key} is {_shown(value)}, expected a non-empty string")
    if "\0" in value or (not value.isascii() and _UNENCODABLE.search(value)):
        raise ValueError(f"{key} is {_shown(value)}, which holds a NUL or half a character")
    return value


def _path(document: Mapping[str, object], key: str, source: ManifestSource) -> str:
    try:
        return resolved(text_of_record(document, key), source.url)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _length(document: Mapping[str, object], key: str, other: str) -> int:
    key = other if key not in document and other in document else key
    value = document.get(key)
    if type(value) is int and 0 <= value < _MOST_TOKENS:  # the usual case, without a regular expression
        return value
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        match = _WHOLE.fullmatch(str(value))
        if match:
            return int(match[1])
    raise TypeError(f"{key} is {_shown(value)}, expected a whole number")


def _plain(name: str) -> str:
    """An id for a message."""
    return _shown(name)[1:-1]


def _shown(value: object) -> str:
    """A wrong value for a message: shortened, and without secrets."""
    try:
        text = redacted(repr(value)[: 10 * LONGEST_SHOWN])
    except RecursionError:  # json parses deeper nesting than repr can print
        return f"a deep {type(value).__name__}"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
