"""Whether a tokenizer is a sound extension of its base, and how well it reads the new language."""

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
"""English, Chinese and pinyin as the front end hands them over; of our own making."""
UNKNOWN_SHARE = 0.01
"""Of a text's tokens; more means another tokenizer or lost characters."""
SHOWN = 3


def examine_extension(
    base: bytes, extended: bytes, corpus: Sequence[str] = (), base_text: Sequence[str] = ()
) -> Iterator[Finding]:
    """Look at an extension.

    Args:
        base: Model file of the base tokenizer.
        extended: Model file to look at.
        corpus: Normalised text of the new language.
        base_text: Normalised text of the base's languages, besides a few lines of our own.
    """
    old, new = parse_model(base, "base tokenizer"), parse_model(extended, "tokenizer")
    yield data_finding("pieces", "ok", f"{len(new.pieces)}, of which the base has {len(old.pieces)}")
    yield from _same_base(old, new)
    yield from _appended(old, new)
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


def _appended(old: Any, new: Any) -> Iterator[Finding]:  # noqa: ANN401
    appended = new.pieces[len(old.pieces) :]
    names = Counter(piece.piece for piece in new.pieces)
    twice = [name for name, times in names.items() if times > 1]
    strange = [piece.piece for piece in appended if piece.type != NORMAL]
    if twice or strange:
        wrong = ", ".join(map(repr, (twice or strange)[:SHOWN]))
        kind = "occur twice" if twice else "are of a special type"
        text = f"{len(twice or strange)} pieces {kind}: {wrong}"
        yield data_finding("new pieces", "error", text, "Extend again, with `indextts-job tokenizer extend`.")
    lower = [piece.piece for piece in appended if piece.piece != piece.piece.upper()]
    if lower:
        text = f"{len(lower)} hold lower-case letters, which never reach the tokenizer: {', '.join(lower[:SHOWN])}"
        yield data_finding("new pieces", "warning", text, "Dead rows. `indextts-job tokenizer extend` makes none.")
    scripts = Counter(_script(piece.piece) for piece in appended)
    shares = ", ".join(f"{script} {count}" for script, count in scripts.most_common())
    text = f"{len(appended)}: {shares}" if appended else "none: the base tokenizer itself"
    yield data_finding("new pieces", "ok", text)
    known = characters_of(old)
    able = [piece.piece for piece in appended if known.issuperset(piece.piece)]
    if able:
        shown = ", ".join(map(repr, able[:SHOWN]))
        text = f"{len(able)} new pieces can be formed in base text, and change how it reads: {shown}"
        advice = "A new piece needs a character that no base piece has. Use `indextts-job tokenizer extend`."
        yield data_finding("base languages", "error", text, advice)


def _script(piece: str) -> str:
    letters = [letter for letter in piece if letter != SPACE]
    named = (unicodedata.name(letter, "").partition(" ")[0].capitalize() for letter in letters if letter.isalpha())
    return next(named, "other") or "other"


def _base_text(base: bytes, extended: bytes, lines: Sequence[str]) -> Finding:
    one, two = _processor(base), _processor(extended)
    pairs = zip(lines, one.EncodeAsIds(list(lines)), two.EncodeAsIds(list(lines)), strict=True)
    changed = [line for line, before, after in pairs if before != after]
    # A line that holds letters unknown to the base is no base text.
    changed = [line for line in changed if one.unk_id() not in one.EncodeAsIds(line)]
    if changed:
        text = f"{len(changed)} of {len(lines)} lines encode differently: {changed[0]!r}"
        return data_finding("base text", "error", text, "The base languages would suffer. Extend it again.")
    return data_finding("base text", "ok", f"{len(lines)} lines encode to the same ids")


def _reading(base: bytes, extended: bytes, corpus: Sequence[str]) -> Iterator[Finding]:
    letters = sum(map(len, corpus))
    rates = []
    for content in (base, extended):
        processor = _processor(content)
        encoded = processor.EncodeAsIds(list(corpus))
        tokens = sum(map(len, encoded))
        unknown = sum(ids.count(processor.unk_id()) for ids in encoded)
        rates.append((tokens / letters, unknown / max(1, tokens)))
    (before, unknown_before), (after, unknown_after) = rates
    yield data_finding("fertility", "ok", f"{before:.3f} tokens per character with the base, {after:.3f} now")
    text = f"{unknown_before:.2%} of the tokens with the base, {unknown_after:.2%} now"
    processor = _processor(extended)
    lost = sorted({letter for line in corpus for letter in line if letter != " "} - _readable(processor))
    if lost:
        text += f"; {len(lost)} characters have no piece: {''.join(lost[:40])}"
    level: Level = "warning" if unknown_after > UNKNOWN_SHARE else "ok"
    yield data_finding("unknown", level, text, "Extend with text that holds all characters, or clean the text.")
    for line in itertools.islice(corpus, SHOWN):
        yield data_finding("sample", "ok", " ".join(processor.EncodeAsPieces(line)))


def _readable(processor: sentencepiece.SentencePieceProcessor) -> set[str]:
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
