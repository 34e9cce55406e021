"""What is wrong with the text of an utterance, and what is suspicious. Pure.

Texts and manifests are checked when the dataset is assembled, so a corrected transcript reads no audio again.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

LONG_IDS = 120
"""Inference speaks longer texts in segments of so many ids."""
MOST_UNKNOWN = 0.01
SLOWEST, FASTEST = 2.0, 40.0
"""Characters per second of speech; outside of it transcript and audio do not belong together."""
MOST_FOREIGN = 0.1
DURATION_S, DURATION_RATIO = 0.2, 0.02
"""A duration in a manifest may be off by either: programs round, and headers of compressed files estimate."""
_DIGIT = re.compile(r"\d")
_SCRIPTS = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "HALFWIDTH": "CJK", "FULLWIDTH": "CJK"}
"""Scripts that are written together."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """A text with what is known of its utterance."""

    text: str
    language: str
    ids: Sequence[int]
    """Text ids, as the model reads them."""
    seconds: float
    """Of the audio."""
    said_s: float | None
    """Duration in the manifest; None if it does not say."""


def refusal(spoken: Spoken, most_ids: int) -> str:
    """Why an utterance is refused; empty if it is not.

    Args:
        spoken: The utterance.
        most_ids: Text ids that the model accepts.
    """
    return next(filter(None, (_off(spoken), _text_fault(spoken, most_ids), _rate_fault(spoken))), "")


def _off(spoken: Spoken) -> str:
    if spoken.said_s is None:
        return ""
    off = abs(spoken.seconds - spoken.said_s)
    if off <= DURATION_S or off <= DURATION_RATIO * spoken.said_s:
        return ""
    return f"lasts {spoken.seconds:.2f} s, its manifest says {spoken.said_s:.2f} s"


def _text_fault(spoken: Spoken, most_ids: int) -> str:
    if not spoken.text or not spoken.ids:
        return "has no text"
    return f"{len(spoken.ids)} text ids, the model's limit is {most_ids}" if len(spoken.ids) > most_ids else ""


def _rate_fault(spoken: Spoken) -> str:
    rate = len(spoken.text) / spoken.seconds
    if SLOWEST <= rate <= FASTEST:
        return ""
    whose = f" of {spoken.language}" if spoken.language else ""
    return f"{rate:.1f} characters{whose} per second, expected {SLOWEST:g} to {FASTEST:g}"


def warnings(spoken: Spoken, unknown_id: int | None, scripts: Mapping[str, str]) -> Iterator[str]:
    """What is suspicious about a text, in words that are equal for equal findings.

    Args:
        spoken: The utterance.
        unknown_id: The id for what the tokenizer has no piece for; None if it has pieces for everything.
        scripts: The usual script of each language.
    """
    ids = list(spoken.ids)
    if len(ids) > LONG_IDS:
        yield f"over {LONG_IDS} text ids"
    if unknown_id is not None and ids.count(unknown_id) > MOST_UNKNOWN * len(ids):
        yield f"over {MOST_UNKNOWN:.0%} unknown pieces"
    if _DIGIT.search(spoken.text):
        yield "digits, which are not spelt out"
    counts = letters_by_script(spoken.text)
    foreign = sum(counts.values()) - counts[scripts.get(spoken.language, "")]
    if foreign > MOST_FOREIGN * max(1, sum(counts.values())):
        yield "letters of another script"


def usual_scripts(texts: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The script that most letters of each language have.

    Args:
        texts: Language and text of each utterance.
    """
    counts: dict[str, Counter[str]] = {}
    for language, text in texts:
        counts.setdefault(language, Counter()).update(letters_by_script(text))
    return {language: max(found, key=lambda script: (found[script], script), default="")
            for language, found in counts.items()}  # fmt: skip


def letters_by_script(text: str) -> Counter[str]:
    """Number of letters of each script in a text."""
    return Counter(_script(letter) for letter in text if letter.isalpha())


@lru_cache(maxsize=2**14)
def _script(letter: str) -> str:
    """The first word of a letter's Unicode name, which is its script."""
    word = unicodedata.name(letter, "UNKNOWN").partition(" ")[0]
    return _SCRIPTS.get(word, word)
