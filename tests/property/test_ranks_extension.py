"""What an extension of a file of ranks must hold, on Amharic and on whatever hypothesis thinks of."""

# ruff: noqa: RUF001  # the characters are the subject

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indextts_job.doctor.findings import Finding
from indextts_job.doctor.ranks import demand_same_kind, examine_ranks
from indextts_job.errors import ConfigError, DataError
from indextts_job.tokenizer.encoding import encode
from indextts_job.tokenizer.extend_ranks import extend_ranks
from indextts_job.tokenizer.loading import Tokenizer, parse_tokenizer
from indextts_job.tokenizer.own_characters import OwnCharacters
from indextts_job.tokenizer.ranks import SPECIAL_TOKENS, names_of, parse_ranks
from indextts_job.tokenizer.row_map import RowMap
from indextts_job.tokenizer.stock_text import prepare
from tests.support.amharic import sentences
from tests.support.ranks import BASE_LETTERS, merged, ranks_file, small_ranks

BASE = parse_tokenizer(small_ranks(), "base")
TOKENS = parse_ranks(BASE.content, "base")
NEW = 150


def corpus() -> list[str]:
    return [text for sentence in sentences(400) if (text := prepare(sentence, "am"))]


@functools.cache
def extended() -> Tokenizer:
    return parse_tokenizer(extend_ranks(BASE, corpus(), BASE.pieces + NEW), "extension")


def mapped(tokenizer: Tokenizer, text: str) -> list[int]:
    """The base's ids of a text in the extension."""
    assert BASE.ranks is not None
    rows = RowMap(BASE.ranks, tokenizer.pieces - BASE.pieces)
    return [rows.in_extension(number) for number in encode(BASE, text)]


def findings(tokenizer: Tokenizer, **texts: list[str]) -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine_ranks(BASE, tokenizer, **texts)}


def test_the_base_stays_byte_for_byte_and_special_tokens_follow_the_ranks() -> None:
    new = extended()
    assert new.content.startswith(BASE.content)
    assert new.pieces == BASE.pieces + NEW
    assert new.piece_names[-len(SPECIAL_TOKENS) :] == SPECIAL_TOKENS
    assert parse_ranks(new.content, "new")[: len(TOKENS)] == TOKENS


@given(st.lists(st.text(BASE_LETTERS, max_size=30) | st.sampled_from(SPECIAL_TOKENS), max_size=5).map("".join))
def test_base_text_encodes_to_the_same_ids_through_the_map(text: str) -> None:
    assert encode(extended(), text) == mapped(extended(), text)


def test_the_new_language_reads_better_and_every_new_token_has_a_use() -> None:
    before, after = ([len(encode(each, line)) for line in corpus()] for each in (BASE, extended()))
    assert sum(after) < 0.3 * sum(before)
    seen = {number for line in corpus() for number in encode(extended(), line)}
    assert BASE.ranks is not None
    added = parse_ranks(extended().content, "new")[BASE.ranks :]
    occurring = [token for rank, token in enumerate(added, start=BASE.ranks) if rank in seen]
    assert all(any(token in longer for longer in occurring) for token in added)


def test_the_same_text_gives_the_same_bytes() -> None:
    assert extend_ranks(BASE, corpus(), BASE.pieces + NEW) == extended().content


def test_a_file_without_a_last_line_end_is_extended_too() -> None:
    base = parse_tokenizer(BASE.content.rstrip(b"\n"), "base")
    assert extend_ranks(base, corpus(), BASE.pieces + NEW) == extended().content


@settings(max_examples=15)
@given(st.lists(st.text(alphabet="አበገደሀ" + "абвг" + "地天the 'ạ1", min_size=1, max_size=30), min_size=5, max_size=40))
def test_any_text_is_extended_soundly_or_refused(lines: list[str]) -> None:
    lines = [text for line in lines if (text := prepare(line, "tt"))]
    try:
        content = extend_ranks(BASE, lines, BASE.pieces + 12)
    except DataError:
        return
    new = parse_tokenizer(content, "new")
    assert [finding for finding in findings(new, corpus=lines).values() if finding.level == "error"] == []
    text = BASE_LETTERS * 2
    assert encode(new, text) == mapped(new, text)


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(ConfigError, match=f"has {BASE.pieces} ids, 1673 of them special, and {BASE.pieces} are wanted"):
        extend_ranks(BASE, corpus(), BASE.pieces)
    with pytest.raises(DataError, match="ask for at most") as refused:
        extend_ranks(BASE, corpus(), BASE.pieces + 50_000)
    most = int(str(refused.value).split("at most ")[1].split()[0])
    assert parse_tokenizer(extend_ranks(BASE, corpus(), most), "new").pieces == most
    with pytest.raises(DataError, match="every character of the text has a token"):
        extend_ranks(BASE, ["<|en|> the cat"], BASE.pieces + 5)


def test_a_checker_says_what_an_extension_costs_and_gains() -> None:
    found = findings(extended(), corpus=corpus(), base_text=["<|en|> the cat", "<|zh|> 天"])
    assert {finding.level for finding in found.values()} == {"ok"}
    first = len(TOKENS)
    assert f"{NEW} higher: {first}…{first + 1672} have become {first + NEW}…" in found["special tokens"].found
    assert "encoded again" in found["special tokens"].details[0]
    assert f"0…{first - 1}, {NEW} new ones, the base's {first}…{first + 1672}" in found["special tokens"].details[1]
    assert "tokens per character with the base, 0." in found["fertility"].found
    assert "longer than the 120 tokens" in found["long texts"].found
    assert f"of {NEW} new tokens occur in 400 lines" in found["use"].found
    alone = findings(BASE, corpus=corpus())
    assert "now" not in alone["fertility"].found
    assert "100.0% are longer than the 120" in findings(BASE, corpus=["<|am|> " + "ሀ" * 200])["long texts"].found


def test_a_checker_finds_what_naive_tools_do() -> None:
    def errors(tokens: tuple[bytes, ...]) -> set[str]:
        found = findings(parse_tokenizer(ranks_file(tokens), "new"))
        return {subject for subject, finding in found.items() if finding.level != "ok"}

    assert errors(TOKENS) == set()
    assert errors((*TOKENS, "ሀ".encode())) == set()
    assert "base languages" in errors((*TOKENS, b"catdoor"))
    one, two = merged(b" nobody", TOKENS)[-2:]
    assert "base text" in errors((*TOKENS, one + two))
    assert "base tokens" in errors((*TOKENS[:300], "ሀ".encode(), *TOKENS[300:]))
    assert "base tokens" in errors(TOKENS[:-5])


def test_a_line_with_a_character_that_was_learned_is_a_warning() -> None:
    found = findings(extended(), base_text=["<|en|> the cat " + sentences(1)[0], "<|en|> the cat"])["base text"]
    assert found.level == "warning"
    assert len(found.details) == 1


def test_tokenizers_of_two_kinds_are_not_compared() -> None:
    pieces = Tokenizer(b"", ("a",))
    demand_same_kind(BASE, extended())
    with pytest.raises(ConfigError, match="the base is a SentencePiece model"):
        demand_same_kind(pieces, BASE)
    with pytest.raises(ConfigError, match="the base is a file of ranks"):
        demand_same_kind(BASE, pieces)


def test_the_support_file_is_like_the_released_one() -> None:
    own = OwnCharacters.of(TOKENS)
    assert own.without(BASE_LETTERS) == set()
    assert names_of(TOKENS)[:2] == ("IQ==", "Ig==")
