"""What is spoken: validation records and free texts, with the ids and the row that inference would give them.

Stored ids prove nothing about inference: it makes its own, from the text and the name of the language. So a wrong row,
tokenizer or normaliser, which is in the training and the validation set alike, shows only here.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice

import numpy as np

from indextts_job.data.array_files import spoken_ids
from indextts_job.data.dataset import Dataset, Use, content_digest
from indextts_job.data.record_texts import record_texts
from indextts_job.errors import ConfigError
from indextts_job.hashing import integrity_digest
from indextts_job.model.batch import Sample
from indextts_job.model.config import GPTConfig
from indextts_job.model.languages import CODES, language_of, row_when_called
from indextts_job.speaking.config import FreeText, SpeakingConfig
from indextts_job.speaking.decoder import Utterance
from indextts_job.tokenizer.encoding import called_ids
from indextts_job.tokenizer.loading import Tokenizer

MOST_CODES = 1500
"""`max_mel_tokens` of published inference."""
SEGMENT = 120
"""Tokens of a text, its prefix included, above which published inference cuts it and speaks the parts one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One utterance of the script."""

    key: str
    """Id of the record; of a free text, its number."""
    language: str
    """Label that its figures are reported under."""
    utterance: Utterance
    expected: float
    """Codes of the reference; of a free text, as many as its source has for a text of this length."""
    reference: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """All that is spoken, in a fixed order."""

    lines: tuple[Line, ...]
    fingerprint: str
    """SHA-256 of everything that decides what is spoken and what it is compared with."""
    stored: Counter[str]
    """Number of records whose stored ids are spoken, by the reason."""

    def described(self) -> str:
        """What to tell about it."""
        counts = Counter(line.language or "no language" for line in self.lines)
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        return f"at each validation the model speaks {told}{self._stored_text()}"

    def _stored_text(self) -> str:
        if not self.stored:
            return ""
        reasons = ", ".join(f"{count} as {reason}" for reason, count in self.stored.items())
        return f"; {self.stored.total()} by their stored ids ({reasons}): wrong ids do not show there"


@dataclass(frozen=True, slots=True)
class Source:
    """Where the utterances come from."""

    validation: Dataset
    train: Dataset
    model: GPTConfig
    tokenizer: Tokenizer


def make_script(source: Source, config: SpeakingConfig) -> Script:
    """The script of a run.

    Args:
        source: Its data, model and tokenizer.
        config: What is to be spoken.

    Raises:
        ConfigError: A name, a text or a speaker is wrong.
    """
    names = _Names.parsed(config.names, source)
    chosen = first_by_id(source.validation, config.records)
    texts = record_texts(source.validation, chosen)
    lines = [_line(source, names, index, texts.get(index, "")) for index in chosen]
    free = [_free_line(source, names, chosen, number, text) for number, text in enumerate(config.texts)]
    every = (*(line for line, _ in lines), *free)
    stored = Counter(reason for _, reason in lines if reason)
    return Script(lines=every, fingerprint=_fingerprint(every, config), stored=stored)


def first_by_id(dataset: Dataset, most: int) -> list[int]:
    """The first samples of each language by id, in the order of language and id.

    A target that was taken already, with another prompt, comes behind all other targets.

    Args:
        dataset: The samples.
        most: Of each language.
    """

    def place(index: int) -> tuple[str, str]:
        return dataset.language_of(index), dataset.id_of(index)

    seen: set[bytes] = set()
    again = {index for index in sorted(range(len(dataset)), key=place) if _seen(seen, dataset, index)}
    every = sorted(range(len(dataset)), key=lambda index: (dataset.language_of(index), index in again, place(index)))
    by_language = (islice(found, most) for _, found in groupby(every, key=dataset.language_of))
    return sorted(chain.from_iterable(by_language), key=place)


def _seen(seen: set[bytes], dataset: Dataset, index: int) -> bool:
    """Whether the target of a sample, its text and its codes, was among those before; it is added to them."""
    part, place = dataset.place(index)
    source = part.source
    label = f"{dataset.language_of(index)}\0".encode()
    uses: tuple[Use, ...] = ("text", "codes")
    target = label + b"".join(source.digests(use, place, place + 1).tobytes() for use in uses)
    before = len(seen)
    seen.add(target)
    return len(seen) == before


@dataclass(frozen=True, slots=True)
class _Names:
    """By label of a language, the name that inference is called with."""

    given: Mapping[str, str]
    labels: Sequence[str]
    version_has_rows: bool

    @classmethod
    def parsed(cls, texts: Sequence[str], source: Source) -> "_Names":
        labels = list(source.validation.languages)
        given = dict(_label_and_name(text, labels) for text in texts)
        return cls(given, labels, bool(source.model.version.language_rows))

    def of(self, label: str) -> str:
        """The name that records of a label are spoken by."""
        if label in self.given or not self.version_has_rows:
            return self.given.get(label, label)
        return language_of(label).slot if label else label

    def label(self, name: str) -> str:
        """The label whose figures a text of this name belongs to; the name itself where there is none.

        Case counts as little as in inference. Of several labels that are spoken by a name, its own comes first.
        """
        called = name.lower()
        fitting = [label for label in self.labels if self.of(label).lower() == called]
        return min(fitting, key=lambda label: label.lower() != called, default=called)


def _label_and_name(text: str, labels: Sequence[str]) -> tuple[str, str]:
    label, _, name = (part.strip() for part in text.partition("="))
    if not name or label not in labels:
        raise ConfigError(
            f"speaking.names: {text!r} is no LABEL=NAME with a label of the validation set, which has "
            f"{', '.join(known or 'no language' for known in labels)}. `en=am`, say."
        )
    return label, name


def _line(source: Source, names: _Names, index: int, text: str) -> tuple[Line, str]:
    """One record, and why its stored ids are spoken; empty where they are not."""
    sample = source.validation.sample(index)
    label = source.validation.language_of(index)
    spoken = _as_called(source, sample, text, names.of(label))
    codes = tuple(map(int, sample.codes))
    line = Line(
        key=sample.id,
        language=label,
        utterance=_utterance(source.model, sample if isinstance(spoken, str) else spoken, len(codes)),
        expected=float(len(codes)),
        reference=codes,
    )
    return line, spoken if isinstance(spoken, str) else ""


def _as_called(source: Source, sample: Sample, text: str, name: str) -> Sample | str:
    """A sample with the ids and the row of inference; where they cannot be had, the reason."""
    if not text.strip():
        return "the text is absent"
    found = called_ids(source.tokenizer, text, name)
    if found is None:
        return "a tool of the release would spell out what the text holds"
    most = min(SEGMENT, source.model.max_text_tokens)
    if len(found) > most:
        return f"inference would cut the text, which has more than {most} tokens, into segments"
    ids = spoken_ids(np.asarray(found, np.int32), source.model.version)
    if not len(ids):
        return "nothing of the text is spoken"
    row = row_when_called(name) if source.model.version.language_rows else sample.language_row
    return replace(sample, text_ids=ids, language_row=row)


def _utterance(model: GPTConfig, sample: Sample, expected: float) -> Utterance:
    limit = min(MOST_CODES, round(2 * expected) + 50, model.max_mel_tokens)
    key = int.from_bytes(integrity_digest(sample.id.encode())[:8], "little") >> 1
    return Utterance(sample=sample, limit=limit, key=key)


def _free_line(source: Source, names: _Names, chosen: Sequence[int], number: int, text: FreeText) -> Line:
    where = f"speaking.texts[{number}]"
    if source.model.version.language_rows and not text.language:
        raise ConfigError(f"{where} has no language. Give the name that inference will be called with.")
    label = names.label(text.language)
    if source.model.version.language_rows and label not in (*names.labels, *CODES):
        raise ConfigError(
            f"{where}: inference knows no language {text.language!r}, and would speak it as common, in silence. Give a "
            "code as in `am`; to hear it all the same, name it in speaking.names, as in `LABEL=NAME`."
        )
    voice = source.validation.sample(_speaker(source, chosen, text.speaker, where))
    key = f"{where} of {voice.id}"
    spoken = _as_called(source, replace(voice, id=key), text.text, text.language)
    if isinstance(spoken, str):
        raise ConfigError(
            f"{where}: {text.text[:60]!r} cannot be spoken as {text.language or 'no language'}: {spoken}. Give a text "
            "that is written out and short enough, or leave it out."
        )
    expected = len(spoken.text_ids) * _codes_per_id(source.train, label)
    return Line(
        key=key,
        language=label,
        utterance=_utterance(source.model, spoken, expected),
        expected=expected,
        reference=None,
    )


def _speaker(source: Source, chosen: Sequence[int], speaker: str, where: str) -> int:
    if not speaker:
        return chosen[0]
    for index in range(len(source.validation)):
        if source.validation.id_of(index) == speaker:
            return index
    raise ConfigError(f"{where}: speaker {speaker!r} is the id of no validation record. Leave it out for the first.")


def _codes_per_id(train: Dataset, label: str) -> float:
    """Codes per text id of the training records of a language; of all, if there are none."""
    of_language = np.concatenate([_is_language(part.languages, label)[part.language] for part in train.parts])
    chosen = of_language if of_language.any() else np.ones_like(of_language)
    return float(train.code_lengths[chosen].sum() / train.text_lengths[chosen].sum())


def _is_language(languages: Sequence[str], label: str) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.array([name == label for name in languages])


def _fingerprint(lines: Sequence[Line], config: SpeakingConfig) -> str:
    digest = hashlib.sha256(config.mode.encode())
    for line in lines:
        sample = line.utterance.sample
        for part in (line.key, line.language, sample.text_ids.tolist(), sample.language_row, line.reference):
            digest.update(f"{part!r}\n".encode())
        digest.update(f"{line.utterance.limit} {line.expected!r}\n".encode())
        digest.update(content_digest(sample.condition) + content_digest(sample.emotion))
    return digest.hexdigest()


def training_codes(train: Dataset, most: int) -> Iterator[np.ndarray[tuple[int], np.dtype[np.integer]]]:
    """Codes of at most so many training records, evenly spread.

    Args:
        train: The training set.
        most: Number of records.
    """
    every = max(1, len(train) // most)
    for sample in train.samples(range(0, len(train), every)[:most]):
        yield sample.codes
