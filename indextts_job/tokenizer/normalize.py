"""Normalise text as the published front end does before tokenization: clean it, map punctuation, upper-case it.

Numbers and abbreviations stay: the front end spells them out for Chinese and English only, with tools of its own.
"""

import re
import unicodedata

AMHARIC = ("am", "amh")
_ETHIOPIC = re.compile("[\u1200-\u137f\u1380-\u139f\u2d80-\u2ddf\uab00-\uab2f]")
_SPEAKER = re.compile(r"(?:speaker|spk|ተናጋሪ)\s*\d+\s*[:：]\s*", re.IGNORECASE)  # noqa: RUF001  # a wide colon
_CJK = re.compile(
    "([\u1100-\u11ff\u2e80-\ua4cf\ua840-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff65-\uffdc\U00020000-\U0002ffff])"
)
"""Characters between which the front end puts spaces; its range includes Ethiopic Extended-A."""
_COMMON = {
    **dict.fromkeys(["...", ",,,", "……"], "…"),
    **dict.fromkeys("：；;，、:", ","),  # noqa: RUF001
    **{"。": ".", "！": "!", "？": "?", "\n": " "},  # noqa: RUF001
    **dict.fromkeys("·—～~", "-"),  # noqa: RUF001
    **dict.fromkeys('“”"‘’（）()《》【】[]「」', "'"),  # noqa: RUF001
}
_ETHIOPIC_MARKS = {"።": ".", "፣": ",", "፤": ";", "፥": ":", "፦": ":", "፧": "?", "፨": "!", "፡": " "}


def _pattern(mapping: dict[str, str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(mark) for mark in sorted(mapping, key=len, reverse=True)))


_AMHARIC_MAP = _COMMON | _ETHIOPIC_MARKS
_PATTERNS = {False: (_COMMON, _pattern(_COMMON)), True: (_AMHARIC_MAP, _pattern(_AMHARIC_MAP))}


def normalize(text: str, language: str = "") -> str:
    """A text in the form that the tokenizer reads.

    Args:
        text: The text of a manifest.
        language: `am` or `amh` for Amharic; without it a text with an Ethiopic letter is Amharic.
    """
    amharic = language.lower() in AMHARIC or bool(_ETHIOPIC.search(text))
    text = _cleaned(text, amharic=amharic)
    text = _mapped(text, amharic=amharic).strip()
    if len(text) == 1:
        return text  # the front end leaves a single character in lower case
    return " ".join(part.strip() for part in _CJK.split(text.upper()) if part.strip())


def map_marks(text: str) -> str:
    """A text with its punctuation reduced to a few marks, as the front ends of both releases do it."""
    return _mapped(text, amharic=False)


def _mapped(text: str, *, amharic: bool) -> str:
    mapping, pattern = _PATTERNS[amharic]
    return pattern.sub(lambda found: mapping[found[0]], text)


def _cleaned(text: str, *, amharic: bool) -> str:
    text = text.replace("\u3000", " ").replace("\xa0", " ").strip()
    # Transcripts may begin with `Speaker 1:`, which nobody says.
    text = _SPEAKER.sub("", text, count=1) if _SPEAKER.match(text) else text
    text = unicodedata.normalize("NFC" if amharic else "NFKC", text)
    return " ".join(text.split())
