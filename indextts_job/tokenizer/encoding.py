"""Text to ids, with either kind of tokenizer, as published inference does it."""

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sentencepiece

from indextts_job.errors import ConfigError
from indextts_job.tokenizer import stock_text
from indextts_job.tokenizer.loading import Tokenizer
from indextts_job.tokenizer.normalize import AMHARIC, normalize
from indextts_job.tokenizer.ranks import SPECIAL_TOKENS, SPLIT_PATTERN, parse_ranks

if TYPE_CHECKING:
    import tiktoken

_DIGIT = re.compile(r"\d")


def stock_ids(tokenizer: Tokenizer, text: str, language: str) -> list[int] | None:
    """The ids that published inference would give a text; None if that cannot be told here.

    It cannot where a tool of the release spells out numbers and abbreviations, or adds Japanese readings. The ids of a
    file of ranks begin with the token of the language. They may hold 0 and 1, which the model drops.

    Args:
        tokenizer: The tokenizer.
        text: The text of a manifest.
        language: Its label, for a file of ranks `name:slot` too.
    """
    prepared = _stock_text(text, language) if tokenizer.ranks is None else _stock_text_of_slot(text, language)
    return encode(tokenizer, prepared) if prepared else None


def called_ids(tokenizer: Tokenizer, text: str, name: str) -> list[int] | None:
    """The ids that inference gives a text when it is called with a name, whatever that is; None as for `stock_ids`.

    Args:
        tokenizer: The tokenizer.
        text: The text.
        name: The language that inference is called with. One that it does not know has no token of its own.
    """
    name = name.lower()
    prepared = _stock_text(text, name) if tokenizer.ranks is None else stock_text.prepare_called(text, name)
    return encode(tokenizer, prepared) if prepared else None


def ids_as_spelt(tokenizer: Tokenizer, text: str, language: str) -> list[int]:
    """The ids of a text whose numbers and abbreviations stay as they are written; none for a text without letters.

    Published inference spells some of them out; where it does not, these are its ids (`stock_ids`).

    Args:
        tokenizer: The tokenizer.
        text: The text of a manifest.
        language: Its label, as in `stock_ids`.
    """
    if tokenizer.ranks is None:
        return encode(tokenizer, normalize(text, language))
    prepared = _stock_text_of_slot(text, language) or stock_text.prepare_as_spelt(text, language)
    return encode(tokenizer, prepared) if prepared else []


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a prepared text.

    Args:
        tokenizer: The tokenizer.
        text: The text, for a file of ranks with the prefix of its language.
    """
    if tokenizer.ranks is None:
        ids: list[int] = _processor(tokenizer.content).EncodeAsIds(text)
        return ids
    return encoding(tokenizer.content).encode(text, allowed_special="all")


def _stock_text(text: str, language: str) -> str | None:
    # The front end spells out the numbers of all languages but Amharic, which `normalize` does not.
    return None if language.lower() not in AMHARIC and _DIGIT.search(text) else normalize(text, language)


def _stock_text_of_slot(text: str, language: str) -> str | None:
    try:
        return stock_text.prepare(text, language) if language else None
    except ValueError:  # inference would take it for `common`, and split its prefix
        return None


# Both are slow to build and small; `stock_ids` is called once for every text of a dataset.
@lru_cache(maxsize=2)
def _processor(content: bytes) -> Any:  # noqa: ANN401  # the library has no types
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(content)
    return processor


@lru_cache(maxsize=2)
def encoding(content: bytes) -> "tiktoken.Encoding":
    """The encoder of a file of ranks.

    Args:
        content: The file.

    Raises:
        ConfigError: The library that encodes with it is not installed.
    """
    try:
        import tiktoken  # noqa: PLC0415  # IndexTTS-2.0 does without it
    except ImportError as error:
        raise ConfigError("a tokenizer of IndexTTS-2.5 needs a library: pip install tiktoken") from error
    ranks = {token: rank for rank, token in enumerate(parse_ranks(content, "tokenizer"))}
    return tiktoken.Encoding(
        name="IndexTTS-2.5",
        pat_str=SPLIT_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={token: len(ranks) + place for place, token in enumerate(SPECIAL_TOKENS)},
        explicit_n_vocab=len(ranks) + len(SPECIAL_TOKENS),
    )
