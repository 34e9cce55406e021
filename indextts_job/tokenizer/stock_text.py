"""Text as the published inference of IndexTTS-2.5 hands it to the tokenizer. Pure.

The order is inference's: marks of punctuation, numbers and abbreviations, upper or lower case, marks of pronunciation,
the language's prefix. Numbers and abbreviations of Chinese, English and Spanish are spelt out by tools that are not
here, and Japanese gets its readings from one. What such a tool might change has no text here: None.
Source: `infer_v2_5.py` and `utils/front.py` of the release.
"""

import re

from indextts_job.model.languages import language_of
from indextts_job.tokenizer.normalize import map_marks

_LOWER, _UPPER = ("zh", "en", "ja"), ("es",)
"""Slots whose text is written in one case; all others stay as they are."""
_SPELT_OUT = ("zh", "en", "es")
"""Slots in which numbers and abbreviations are spelt out."""
_PROTECTED = ("zh", "en")
"""Of these, the ones in which marks of pronunciation are kept away from the tools."""
_PRONUNCIATION = re.compile(r"<([^|>\n]+)\|([^>\n]+)>")
"""`<word|phones>`: how the word is to be spoken."""
_HAN = re.compile("[\u4e00-\u9fff]")
_KANA = re.compile("[\u3040-\u309f]+|[\u30a0-\u30ff]+")
_CONTROL = re.compile(r"<\|([^|]+)\|>")
_CONTRACTION = re.compile(r"(what|where|who|which|how|t?here|it|s?he|that|this)'s", re.IGNORECASE)
_PLAIN_MARKS = frozenset(" ,.!?'-…¿¡")
"""Marks that the tools leave alone; letters are the rest of a text that they do not change."""
_SHORTENED = re.compile(
    r"[^\W\d_]\.[^\W\d_]"  # U.S., e.g.
    r"|\b[IVXLCDM]{2,}\b"  # Roman numerals
    r"|(?i:\b(?:av|capt|cf|co|col|dept|dr|dra|ed|est|etc|fig|ft|gen|gov|hon|inc|jr|lt|ltd|messrs|mr|mrs|ms|mt|núm|no"
    r"|oz|pág|prof|rep|rev|sen|sgt|sr|sra|srta|st|ste|tel|ud|uds|vol|vs)\.)"
)


def prefix(slot: str) -> str:
    """What stands in front of every text of a slot."""
    return f"<|{slot}|> "


def prepare(text: str, language: str) -> str | None:
    """The string that inference encodes for a text; None if tools that are not here might have a part in it.

    A text that inference would speak in several segments is given as one.

    Args:
        text: The text of a manifest.
        language: Its label, a language or `name:slot`; none = a text without prefix and without rules of a language.

    Raises:
        ValueError: There is no such language or slot; names what there is.
    """
    return prepare_called(text, language_of(language).slot if language else "")


def prepare_called(text: str, slot: str) -> str | None:
    """The same for the code that inference is called with, which it takes as it is: unknown ones too.

    Args:
        text: The text.
        slot: The code, in lower case; empty = no prefix.
    """
    spoken = _spoken(map_marks(text), slot)
    return None if spoken is None or not spoken.strip() else _finished(spoken, slot)


def prepare_as_spelt(text: str, language: str) -> str | None:
    """The same without the tools that spell out: numbers and abbreviations stay as they are written.

    Args:
        text: The text of a manifest.
        language: Its label, as in `prepare`.

    Returns:
        None for a text without anything to speak.

    Raises:
        ValueError: There is no such language or slot; names what there is.
    """
    spoken = map_marks(text)
    return _finished(spoken, language_of(language).slot if language else "") if spoken.strip() else None


def _finished(spoken: str, slot: str) -> str:
    """A spoken text in its case, with its marks of pronunciation and its prefix."""
    marked = _PRONUNCIATION.sub(_pronounced, _cased(spoken, slot))
    # What looks like a special token in a user's text is put into upper case, and so stays text in most cases.
    marked = _CONTROL.sub(lambda found: found[0].upper(), marked)
    return (prefix(slot) if slot else " ") + marked


def _spoken(text: str, slot: str) -> str | None:
    """The text with its numbers and abbreviations spelt out, if there are none; otherwise None."""
    if slot == "ja":
        return None
    if slot not in _SPELT_OUT:
        return text
    # The tools take outer and double spaces away, each in its own way.
    if text != " ".join(text.split()):
        return None
    if slot not in _PROTECTED:
        return text if _left_alone(text) else None
    return _spoken_around_marks(text)


def _spoken_around_marks(text: str) -> str | None:
    """The same of a text whose marks of pronunciation stay as they are."""
    between = _PRONUNCIATION.split(text)[::3]
    if not all(map(_left_alone, between)):
        return None
    marks = [found[0] for found in _PRONUNCIATION.finditer(text)]
    parts = [map_marks(_CONTRACTION.sub(r"\1 is", part)) for part in between]
    return parts[0] + "".join(mark + part for mark, part in zip(marks, parts[1:], strict=True))


def _left_alone(text: str) -> bool:
    """Whether no tool that spells out would change a text, as far as can be told without them."""
    if not all(letter.isalpha() or letter in _PLAIN_MARKS for letter in text) or _SHORTENED.search(text):
        return False
    try:  # the character set of simplified Chinese: the Chinese tool simplifies the other characters
        "".join(_HAN.findall(text)).encode("gb2312")
    except UnicodeEncodeError:
        return False
    return True


def _cased(text: str, slot: str) -> str:
    if slot in _LOWER:
        return text.lower()
    return text.upper() if slot in _UPPER else text


def _pronounced(mark: re.Match[str]) -> str:
    word, phones = mark[1], mark[2].upper()
    if _KANA.fullmatch(phones):
        return f" {phones} "
    token = "<|SPECIAL_TOKEN_2|>" if _HAN.search(word) else "<|SPECIAL_TOKEN_1|>"
    return f"{token}{phones}{token}"
