"""Checks of an extended tokenizer: does it leave the base as it was, and how well does it read the new language?"""

import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import sentencepiece

from indextts_job.doctor.findings import Finding, Level, data_finding
from indextts_job.tokenizer.extend import NORMAL, SPACE, characters_of, occurring, parse_model

BASE_TEXT = (
    "THE CAT SAT BY THE DOOR , AND NOBODY KNEW WHY .",
    "CAN YOU HEAR ME ? YES , I CAN HEAR YOU WELL !",
    "IN NINETEEN SEVENTY TWO A BOOK COST HALF AS MUCH - OR SO THEY SAY .",
    "今 天 天 气 很 好 , 我 们 去 公 园 散 步 吧 .",
    "你 吃 饭 了 吗 ? 还 没 有 , 一 起 去 吧 !",
    "XIAO3 MAO1 ZAI4 MEN2 KOU3 SHUI4 JIAO4 .",
)
"""English, Chinese and pinyin in the form that the text front end gives to the tokenizer."""
UNKNOWN_SHARE = 0.01
"""A larger share of unknown tokens comes from another tokenizer or from characters without a piece."""
SHOWN = 3
SHOWN_CHARACTERS = 40


def examine_extension(
    base: bytes, extended: bytes, corpus: Sequence[str] = (), base_text: Sequence[str] = ()
) -> Iterator[Finding]:
    """Examine an extension.

    Args:
        base: Model file of the base tokenizer.
        extended: Model file of the extended tokenizer.
        corpus: Normalised text of the new language.
        base_text: Normalised text of the base's languages, in addition to `BASE_TEXT`.
    """
    old, new = parse_model(base, "base tokenizer"), parse_model(extended, "tokenizer")
    yield data_finding("pieces", "ok", f"{len(new.pieces)}, of which the base has {len(old.pieces)}")
    yield from _same_base(old, new)
    yield from _new_pieces(old, new)
    # A file may be a valid message of the format and still no model for SentencePiece.
    try:
        _processor(extended)
    except RuntimeError as error:
        yield data_finding("loading", "error", f"SentencePiece refuses it: {error}", "Extend the base tokenizer again.")
        return
    yield _base_text(base, extended, [*BASE_TEXT, *base_text])
    if corpus:
        yield from _reading(base, extended, corpus)
        yield _use(extended, new.pieces[len(old.pieces) :], corpus)


def _same_base(old: Any, new: Any) -> Iterator[Finding]:  # noqa: ANN401
    # The tables of the base checkpoint are indexed by piece, so each piece must keep its number. Its score decides
    # which merges come first, so base text would be read differently with another one.
    pairs = enumerate(zip(old.pieces, new.pieces, strict=False))
    changed = [(at, one, two) for at, (one, two) in pairs if one.SerializeToString() != two.SerializeToString()]
    if len(new.pieces) < len(old.pieces) or changed:
        at, one, two = changed[0] if changed else (len(new.pieces), old.pieces[len(new.pieces)], None)
        other = f"{two.piece!r} ({two.score:g})" if two else "missing"
        text = f"{len(changed)} differ; the first is id {at}: {one.piece!r} ({one.score:g}) has become {other}"
        advice = "The base checkpoint's rows would stand for other pieces. Extend the base tokenizer."
        yield data_finding("base pieces", "error", text, advice)
    else:
        yield data_finding("base pieces", "ok", f"all {len(old.pieces)} with their scores, byte for byte")


def _new_pieces(old: Any, new: Any) -> Iterator[Finding]:  # noqa: ANN401
    names = Counter(piece.piece for piece in new.pieces)
    twice = [name for name, times in names.items() if times > 1]
    appended = new.pieces[len(old.pieces) :]
    special = [piece.piece for piece in appended if piece.type != NORMAL]
    appended_names = [piece.piece for piece in appended]
    yield from _wrong_pieces(twice, special)
    yield from _lower_case_pieces(appended_names)
    yield scripts(appended_names)
    yield from _pieces_in_base_text(appended_names, characters_of(old))


def _wrong_pieces(twice: Sequence[str], special: Sequence[str]) -> Iterator[Finding]:
    wrong, kind = (twice, "occur twice") if twice else (special, "are of a special type")
    if wrong:
        text = f"{len(wrong)} pieces {kind}: {', '.join(map(repr, wrong[:SHOWN]))}"
        yield data_finding("new pieces", "error", text, "Extend again, with `indextts-job tokenizer extend`.")


def _lower_case_pieces(appended: Sequence[str]) -> Iterator[Finding]:
    # Published inference puts every text into upper case before it is tokenized.
    lower = [piece for piece in appended if piece != piece.upper()]
    if lower:
        text = f"{len(lower)} hold lower-case letters, which never reach the tokenizer: {', '.join(lower[:SHOWN])}"
        yield data_finding(
            "new pieces",
            "warning",
            text,
            "Their rows would never be trained. `indextts-job tokenizer extend` adds no such pieces.",
        )


def scripts(appended: Sequence[str]) -> Finding:
    """Of which scripts new pieces are.

    Args:
        appended: The pieces.
    """
    shares = ", ".join(f"{script} {count}" for script, count in Counter(map(_script, appended)).most_common())
    text = f"{len(appended)}: {shares}" if appended else "none: the base tokenizer itself"
    return data_finding("new pieces", "ok", text)


def _pieces_in_base_text(appended: Sequence[str], base_characters: set[str]) -> Iterator[Finding]:
    able = [piece for piece in appended if base_characters.issuperset(piece)]
    if able:
        shown = ", ".join(map(repr, able[:SHOWN]))
        text = f"{len(able)} new pieces can be formed in base text, and change how it reads: {shown}"
        advice = "A new piece needs a character that no base piece has. Use `indextts-job tokenizer extend`."
        yield data_finding("base languages", "error", text, advice)


def _script(piece: str) -> str:
    """The script of a piece's first letter: Unicode names of letters begin with it."""
    letters = [letter for letter in piece if letter != SPACE]
    named = (unicodedata.name(letter, "").partition(" ")[0].capitalize() for letter in letters if letter.isalpha())
    return next(named, "other") or "other"


def _base_text(base: bytes, extended: bytes, lines: Sequence[str]) -> Finding:
    one, two = _processor(base), _processor(extended)
    pairs = zip(lines, one.EncodeAsIds(list(lines)), two.EncodeAsIds(list(lines)), strict=True)
    # A line with letters that the base does not know is not text of a base language.
    changed = [line for line, before, after in pairs if before != after and one.unk_id() not in before]
    if changed:
        text = f"{len(changed)} of {len(lines)} lines encode differently: {changed[0]!r}"
        return data_finding("base text", "error", text, "The base languages would suffer. Extend it again.")
    return data_finding("base text", "ok", f"{len(lines)} lines encode to the same ids")


def _reading(base: bytes, extended: bytes, corpus: Sequence[str]) -> Iterator[Finding]:
    old, new = _processor(base), _processor(extended)
    (before, unknown_before), (after, unknown_after) = _rates(old, corpus), _rates(new, corpus)
    yield data_finding("fertility", "ok", f"{before:.3f} tokens per character with the base, {after:.3f} now")
    text = f"{unknown_before:.2%} of the tokens with the base, {unknown_after:.2%} now"
    lost = sorted(set("".join(corpus)) - {" "} - _readable(new))
    if lost:
        text += f"; {len(lost)} characters have no piece: {''.join(lost[:SHOWN_CHARACTERS])}"
    level: Level = "warning" if unknown_after > UNKNOWN_SHARE else "ok"
    yield data_finding("unknown", level, text, "Extend with text that holds all characters, or clean the text.")
    for line in itertools.islice(corpus, SHOWN):
        yield data_finding("sample", "ok", " ".join(new.EncodeAsPieces(line)))


def _rates(processor: sentencepiece.SentencePieceProcessor, corpus: Sequence[str]) -> tuple[float, float]:
    """Tokens per character, and the share of unknown tokens."""
    encoded = processor.EncodeAsIds(list(corpus))
    tokens = sum(map(len, encoded))
    unknown = sum(ids.count(processor.unk_id()) for ids in encoded)
    return tokens / sum(map(len, corpus)), unknown / max(1, tokens)


def _readable(processor: sentencepiece.SentencePieceProcessor) -> set[str]:
    """The characters with a piece of their own."""
    pieces = (processor.IdToPiece(number) for number in range(processor.GetPieceSize()))
    return {piece for piece in pieces if len(piece) == 1}


def _use(extended: bytes, appended: Any, corpus: Sequence[str]) -> Finding:  # noqa: ANN401
    seen = occurring(extended, corpus)
    unseen = [piece.piece for piece in appended if piece.piece not in seen]
    text = f"{len(appended) - len(unseen)} of {len(appended)} new pieces occur in {len(corpus)} lines"
    if unseen:
        text += f"; the others are steps to longer ones, or rows that will not train: {', '.join(unseen[:SHOWN])}"
    return data_finding("use", "ok", text)


def _processor(content: bytes) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(content)
    return processor
