"""What an extension must hold, on Amharic and on whatever hypothesis thinks of."""

import functools
import string

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from indextts_job.demo.world import base_tokenizer
from indextts_job.doctor.tokenizer import examine_extension
from indextts_job.errors import ConfigError, DataError
from indextts_job.tokenizer.extend import SPACE, characters_of, extend, parse_model
from indextts_job.tokenizer.normalize import normalize
from tests.support.amharic import sentences

BASE = base_tokenizer()
BASE_LETTERS = string.ascii_uppercase + " .,!?-"


@functools.cache
def corpus() -> tuple[str, ...]:
    return tuple(normalize(sentence, "am") for sentence in sentences(400))


@functools.cache
def extended(pieces: int = 300) -> bytes:
    return extend(BASE, corpus(), pieces).content


def processor(content: bytes) -> sentencepiece.SentencePieceProcessor:
    found = sentencepiece.SentencePieceProcessor()
    found.LoadFromSerializedProto(content)
    return found


def test_the_corpus_is_worth_the_name() -> None:
    assert sum(map(len, corpus())) > 8000
    assert len(set(corpus())) == 400


def test_base_pieces_and_scores_stay_byte_for_byte() -> None:
    old, new = parse_model(BASE, "base"), parse_model(extended(), "new")
    assert [p.SerializeToString() for p in new.pieces[: len(old.pieces)]] == [p.SerializeToString() for p in old.pieces]
    assert len(new.pieces) == new.trainer_spec.vocab_size == 300
    assert max(p.score for p in new.pieces[len(old.pieces) :]) < min(p.score for p in old.pieces)


@given(st.text(alphabet=BASE_LETTERS, max_size=80))
def test_base_text_encodes_to_the_same_ids(text: str) -> None:
    assert processor(extended()).EncodeAsIds(text) == processor(BASE).EncodeAsIds(text)


def test_every_character_has_a_piece_and_the_new_language_reads_better() -> None:
    before, after = (processor(content) for content in (BASE, extended()))
    letters = sum(map(len, corpus()))
    tokens = [sum(map(len, p.EncodeAsIds(list(corpus())))) for p in (before, after)]
    unknown = [sum(ids.count(p.unk_id()) for ids in p.EncodeAsIds(list(corpus()))) for p in (before, after)]
    assert unknown[0] > 0.2 * tokens[0]
    assert unknown[1] == 0
    assert tokens[1] < tokens[0]  # although the base reads a row of unknown letters as one token
    assert tokens[1] / letters < 0.5  # a token per two letters, at least


def test_every_new_piece_occurs_or_leads_to_one_that_does() -> None:
    new = processor(extended())
    seen = {new.IdToPiece(i) for ids in new.EncodeAsIds(list(corpus())) for i in ids}
    old_size = processor(BASE).GetPieceSize()
    added = [new.IdToPiece(i) for i in range(old_size, new.GetPieceSize())]
    assert all(piece in seen or any(piece in longer for longer in seen) for piece in added)
    assert len(added) == len(set(added))


def test_the_same_text_gives_the_same_bytes() -> None:
    assert extend(BASE, corpus(), 300).content == extended()


@settings(max_examples=15)
@given(st.lists(st.text(alphabet="አበገደሀ" + "абвг" + "AB ", min_size=1, max_size=30), min_size=5, max_size=40))
def test_any_text_is_extended_soundly_or_refused(lines: list[str]) -> None:
    lines = [line for text in lines if (line := normalize(text))]
    try:
        content = extend(BASE, lines, len(parse_model(BASE, "base").pieces) + 12).content
    except DataError:
        return
    findings = list(examine_extension(BASE, content, lines))
    assert [finding for finding in findings if finding.level == "error"] == []
    known = characters_of(parse_model(content, "new")) | {SPACE, " "}
    assert {letter for line in lines for letter in line} <= known


def test_what_cannot_be_done_is_said() -> None:
    size = len(parse_model(BASE, "base").pieces)
    with pytest.raises(ConfigError, match=f"has {size} pieces, {size} are wanted"):
        extend(BASE, corpus(), size)
    with pytest.raises(DataError, match="ask for at most"):
        extend(BASE, corpus()[:3], 5000)
    with pytest.raises(DataError, match="room is for 5 pieces"):
        extend(BASE, corpus(), size + 5)
    with pytest.raises(DataError, match="no character that the base tokenizer lacks"):
        extend(BASE, ["THE QUICK FOX"], size + 5)
    with pytest.raises(DataError, match="not a SentencePiece model"):
        extend(b"<html>", corpus(), 300)


def test_a_checker_finds_what_naive_tools_do() -> None:
    """The ways in which public extensions go wrong (data that were measured on them)."""
    base = parse_model(BASE, "base")

    def with_pieces(*texts: str, score: float = -1000.0) -> bytes:
        model = parse_model(BASE, "base")
        for text in texts:
            model.pieces.add(piece=text, score=score)
        content: bytes = model.SerializeToString()
        return content

    def errors(content: bytes) -> set[str]:
        return {f.subject for f in examine_extension(BASE, content, corpus()) if f.level != "ok"}

    assert errors(extended()) == set()
    assert "base languages" in errors(with_pieces("QUICKBROWN"))
    assert "base text" in errors(with_pieces("KN", score=5.0))
    assert "unknown" in errors(with_pieces("ሰ"))
    assert "new pieces" in errors(with_pieces(base.pieces[20].piece))
    assert "new pieces" in errors(with_pieces("ሰabc"))
    trained_anew = parse_model(BASE, "base")
    trained_anew.pieces[10].piece = "ሰላም"
    assert "base pieces" in errors(trained_anew.SerializeToString())
    del trained_anew.pieces[50:]
    assert "base pieces" in errors(trained_anew.SerializeToString())
