"""Text to ids, with both kinds of tokenizer."""

# ruff: noqa: RUF001  # the characters are the subject

import sys

import pytest

from indextts_job.demo.world import base_tokenizer
from indextts_job.errors import ConfigError, DataError
from indextts_job.tokenizer.encoding import encode, encoding, stock_ids
from indextts_job.tokenizer.loading import Tokenizer, parse_tokenizer
from indextts_job.tokenizer.normalize import normalize
from indextts_job.tokenizer.ranks import SPECIAL_TOKENS, parse_ranks
from tests.support.ranks import merged, ranks_file, small_ranks


@pytest.fixture(scope="module")
def ranks() -> Tokenizer:
    return parse_tokenizer(small_ranks(), "small")


def token_of(tokenizer: Tokenizer, slot: str) -> int:
    assert tokenizer.ranks is not None
    return tokenizer.ranks + SPECIAL_TOKENS.index(f"<|{slot}|>")


def test_a_text_with_its_prefix_is_encoded_as_the_format_says(ranks: Tokenizer) -> None:
    tokens = parse_ranks(ranks.content, "small")
    expected = [tokens.index(part) for word in (b" the", b" cat", b"!") for part in merged(word, tokens)]
    assert encode(ranks, "<|en|> the cat!") == [token_of(ranks, "en"), *expected]
    assert expected[-1] == 0  # `!`, which the model drops


def test_ids_are_known_facts(ranks: Tokenizer) -> None:
    """The first 256 ranks are the released file's: `!` is 0, and a letter that it lacks is three bytes."""
    assert stock_ids(ranks, "ሀ!", "am") == [token_of(ranks, "am"), 220, 157, 230, 222, 0]
    assert encode(ranks, '!"') == [0, 1]


@pytest.mark.parametrize(
    ("text", "language", "known"),
    [
        ("the cat", "en", True),
        ("the 3 cats", "en", False),
        ("ድመት 3", "am", True),
        ("きょうは", "ja", False),
        ("cat", "az:tt", True),
        ("cat", "xx", False),
        ("cat", "", False),
        ("", "am", False),
    ],
)
def test_ids_that_inference_gives_or_none(ranks: Tokenizer, text: str, language: str, known: bool) -> None:
    ids = stock_ids(ranks, text, language)
    assert (ids is not None) is known
    if ids is not None:
        assert ids[0] == token_of(ranks, language.rpartition(":")[2])


def test_a_sentencepiece_model_needs_no_language() -> None:
    tokenizer = parse_tokenizer(base_tokenizer(), "base")
    assert stock_ids(tokenizer, "the cat.", "en") == encode(tokenizer, normalize("the cat.", "en"))
    assert stock_ids(tokenizer, "3 cats", "en") is None
    assert stock_ids(tokenizer, "3 ድመት", "am") is not None
    assert stock_ids(tokenizer, " ", "en") is None


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ConfigError, match="pip install tiktoken"):
        encoding(ranks_file([bytes([byte]) for byte in range(256)]))


def test_a_file_that_cannot_encode_every_text_is_refused() -> None:
    with pytest.raises(DataError, match="byte 255 has no token"):
        parse_tokenizer(ranks_file([bytes([byte]) for byte in range(255)]), "small")
