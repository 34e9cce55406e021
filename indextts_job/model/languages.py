"""The languages of IndexTTS-2.5: names, rows of the language table, tokens of the text prefix. Pure.

A text begins with the token of its language, and every row of it gets the row of its language. Inference looks both up
by one code, and gives every code that it does not know the row of `common`, in silence. So no name is guessed here.
Source of the order: `indextts/utils/tokenizer.py` of the release.
"""

import difflib
from dataclasses import dataclass

NAMES = {
    "en": "english",
    "zh": "chinese",
    "de": "german",
    "es": "spanish",
    "ru": "russian",
    "ko": "korean",
    "fr": "french",
    "ja": "japanese",
    "pt": "portuguese",
    "tr": "turkish",
    "pl": "polish",
    "ca": "catalan",
    "nl": "dutch",
    "ar": "arabic",
    "sv": "swedish",
    "it": "italian",
    "id": "indonesian",
    "hi": "hindi",
    "fi": "finnish",
    "vi": "vietnamese",
    "he": "hebrew",
    "uk": "ukrainian",
    "el": "greek",
    "ms": "malay",
    "cs": "czech",
    "ro": "romanian",
    "da": "danish",
    "hu": "hungarian",
    "ta": "tamil",
    "no": "norwegian",
    "th": "thai",
    "ur": "urdu",
    "hr": "croatian",
    "bg": "bulgarian",
    "lt": "lithuanian",
    "la": "latin",
    "mi": "maori",
    "ml": "malayalam",
    "cy": "welsh",
    "sk": "slovak",
    "te": "telugu",
    "fa": "persian",
    "lv": "latvian",
    "bn": "bengali",
    "sr": "serbian",
    "az": "azerbaijani",
    "sl": "slovenian",
    "kn": "kannada",
    "et": "estonian",
    "mk": "macedonian",
    "br": "breton",
    "eu": "basque",
    "is": "icelandic",
    "hy": "armenian",
    "ne": "nepali",
    "mn": "mongolian",
    "bs": "bosnian",
    "kk": "kazakh",
    "sq": "albanian",
    "sw": "swahili",
    "gl": "galician",
    "mr": "marathi",
    "pa": "punjabi",
    "si": "sinhala",
    "km": "khmer",
    "sn": "shona",
    "yo": "yoruba",
    "so": "somali",
    "af": "afrikaans",
    "oc": "occitan",
    "ka": "georgian",
    "be": "belarusian",
    "tg": "tajik",
    "sd": "sindhi",
    "gu": "gujarati",
    "am": "amharic",
    "yi": "yiddish",
    "lo": "lao",
    "uz": "uzbek",
    "fo": "faroese",
    "ht": "haitian creole",
    "ps": "pashto",
    "tk": "turkmen",
    "nn": "nynorsk",
    "mt": "maltese",
    "sa": "sanskrit",
    "lb": "luxembourgish",
    "my": "myanmar",
    "bo": "tibetan",
    "tl": "tagalog",
    "mg": "malagasy",
    "as": "assamese",
    "tt": "tatar",
    "haw": "hawaiian",
    "ln": "lingala",
    "ha": "hausa",
    "ba": "bashkir",
    "jw": "javanese",
    "su": "sundanese",
    "yue": "cantonese",
    "minnan": "minnan",
    "wuyu": "wuyu",
    "dialect": "dialect",
    "zh/en": "zh/en",
    "en/zh": "en/zh",
    "common": "common",
}
"""Code and English name, in the order of the rows."""
_OTHER_NAMES = {
    "burmese": "my",
    "valencian": "ca",
    "flemish": "nl",
    "haitian": "ht",
    "letzeburgesch": "lb",
    "pushto": "ps",
    "panjabi": "pa",
    "moldavian": "ro",
    "moldovan": "ro",
    "sinhalese": "si",
    "castilian": "es",
    "mandarin": "zh",
}
CODES = tuple(NAMES)
WITH_TOKEN = 99
"""The first so many have a token. The prefix of the others would be split into letters."""
TOKENS_BEFORE = 2
"""Special tokens of the tokenizer in front of the first language's: end of text, start of transcript."""
TRAINED = ("en", "zh", "es", "ja", "ar")
"""Languages that the released model was trained on."""
_ROWS = {code: row for row, code in enumerate(CODES)}
_CODES_OF_NAMES = {**{name: code for code, name in NAMES.items()}, **_OTHER_NAMES}


@dataclass(frozen=True, slots=True)
class Language:
    """The language of a sample, and the slot of the model that it uses."""

    name: str
    """Code, or the user's name of a language that the model has no slot for."""
    slot: str
    """Code of the row and token in use: inference has to be called with it."""

    @property
    def row(self) -> int:
        """Row of the language table."""
        return _ROWS[self.slot]

    def token(self, first: int) -> int:
        """Id of the token that every text of it begins with.

        Args:
            first: Id of the first language's token.
        """
        return first + self.row

    def __str__(self) -> str:
        return self.name if self.slot == self.name else f"{self.name}:{self.slot}"


def row_of(code: str) -> int:
    """Row of a language in the table."""
    return _ROWS[code]


def row_when_called(name: str) -> int:
    """The row that inference takes when it is called with a name: that of `common` for every one it does not know.

    Args:
        name: As a user would give it.
    """
    return _ROWS.get(name.lower(), _ROWS["common"])


def code_of(name: str) -> str:
    """The code of a language by its code or English name; a name that is neither stays, in lower case."""
    plain = name.strip().lower()
    return _CODES_OF_NAMES.get(plain, plain)


def language_of(label: str) -> Language:
    """The language of a label: a code, an English name, or `name:slot` for a language that borrows a slot.

    Args:
        label: As in `az:tt`. Case and outer spaces do not matter.

    Raises:
        ValueError: There is no such language or slot; names what there is.
    """
    name, separator, alias = (code_of(part) for part in label.partition(":"))
    slot = alias if separator else name
    if not name:
        raise ValueError("no language: give each record a `language`, or the manifest one, as in PATH::am")
    if slot not in _ROWS:
        raise ValueError(f"{slot!r} is no language of IndexTTS-2.5{_nearest(slot)}. {_borrow(name)}")
    if _ROWS[slot] >= WITH_TOKEN:
        raise ValueError(f"{slot!r} has no token in the tokenizer, so its prefix would be split. {_borrow(name)}")
    if slot != name and slot in TRAINED:
        raise ValueError(
            f"{name!r} borrows the slot of {slot!r}, which the model speaks already and would unlearn. Borrow that of "
            f"a language outside {', '.join(TRAINED)}, as in {name}:tt"
        )
    return Language(name, slot)


def language_of_token(token: int, first: int) -> str | None:
    """The code of the language whose token it is; None for any other token.

    Args:
        token: A text id.
        first: Id of the first language's token.
    """
    return CODES[token - first] if first <= token < first + WITH_TOKEN else None


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, [*CODES[:WITH_TOKEN], *_CODES_OF_NAMES], n=3, cutoff=0.5)
    return f" (near: {', '.join(close)})" if close else ""


def _borrow(name: str) -> str:
    return f"A language without a slot borrows one by an alias: {name}:tt, or `lang_alias` in the manifest"
