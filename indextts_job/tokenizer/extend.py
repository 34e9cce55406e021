"""More pieces for a new language, behind those of the base tokenizer, without touching what these do.

A byte-pair tokenizer merges the best-scored adjacent pair, so a new piece changes the reading of base text only if it
can be formed there. Every appended piece therefore holds at least one character that no base piece holds: in a text
of base characters it can never come about. Characters come first, since the candidates list them last and a cut of
the list would lose them; merges follow in the order in which they were learned.
"""

import io
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from indextts_job.errors import ConfigError, DataError, findings_message

NORMAL, BPE = 1, 2
"""Of the format: an ordinary piece; a model of byte pairs."""
CANDIDATES_PER_PIECE = 2
"""Learned pieces for each that is wanted: many are no use behind the base."""
SPACE = "\u2581"
_LONGEST_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Extension:
    """An extended tokenizer."""

    content: bytes
    """The model file."""
    base_pieces: int
    pieces: int
    characters: int
    """Of the new ones, single characters."""


def extend(
    base: bytes, lines: Sequence[str], pieces: int, progress: Callable[[str], None] = lambda _doing: None
) -> Extension:
    """Append pieces that a new language needs.

    Args:
        base: Model file of the base tokenizer, byte pairs.
        lines: Normalised text of the new language.
        pieces: Of the result.
        progress: Told what is being done.

    Returns:
        The same bytes for the same arguments.

    Raises:
        ConfigError: The base is of another kind, or has as many pieces already.
        DataError: The text does not hold enough for so many pieces.
    """
    model = parse_model(base, "base tokenizer")
    known = {piece.piece for piece in model.pieces}
    if model.trainer_spec.model_type != BPE:
        raise ConfigError("the base tokenizer is no byte-pair model; only such a model can be extended piece by piece.")
    if pieces <= len(model.pieces):
        raise ConfigError(
            f"the base tokenizer has {len(model.pieces)} pieces, {pieces} are wanted. An extension is larger."
        )
    wanted = pieces - len(model.pieces)
    old_characters = characters_of(model)
    new_characters = sorted({letter for line in lines for letter in line} - old_characters - {" "})
    if not new_characters:
        raise DataError(
            "the text has no character that the base tokenizer lacks: there is nothing to extend it for. Use the base "
            "tokenizer as it is."
        )
    progress(f"learning candidates from {len(lines)} lines")
    learned = _candidates(lines, model, CANDIDATES_PER_PIECE * pieces)
    alone = set(new_characters)
    merges = [text for text in learned if len(text) > 1 and text not in known and alone.intersection(text)]
    chosen = _used(model, lines, new_characters, merges, wanted, progress)
    if len(chosen) < wanted:
        most = len(model.pieces) + len(chosen)
        raise DataError(
            f"{len(lines)} lines give {len(chosen)} useful new pieces ({len(new_characters)} of them characters), "
            f"{wanted} are wanted. Give more text, or ask for at most {most} pieces."
        )
    content: bytes = _with(model, chosen).SerializeToString()
    return Extension(content, len(model.pieces), pieces, len(new_characters))


def parse_model(content: bytes, what: str) -> Any:  # noqa: ANN401  # classes of the format are made at import
    """A SentencePiece model, with its pieces.

    Args:
        content: The model file.
        what: Names it in messages.

    Raises:
        DataError: It is none.
    """
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(content)
        for piece in model.pieces:
            piece.piece.encode()  # texts are decoded when they are asked for, and may be none
    except Exception as error:
        raise DataError(f"{what}: not a SentencePiece model ({len(content)} bytes). Expected a .model file.") from error
    if not model.pieces:
        raise DataError(f"{what}: a SentencePiece model without pieces.")
    return model


def characters_of(model: Any) -> set[str]:  # noqa: ANN401
    """Every character that some ordinary piece of a model holds."""
    return {letter for piece in model.pieces if piece.type == NORMAL for letter in piece.piece}


def _candidates(lines: Sequence[str], base: Any, count: int) -> list[str]:  # noqa: ANN401
    """Pieces that the new language would have of its own, in the order in which they were learned."""
    stream = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=stream,
            model_type="bpe",
            vocab_size=count,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            split_digits=base.trainer_spec.split_digits,
            split_by_unicode_script=base.trainer_spec.split_by_unicode_script,
            split_by_number=base.trainer_spec.split_by_number,
            max_sentencepiece_length=base.trainer_spec.max_sentencepiece_length,
            max_sentence_length=_LONGEST_LINE_BYTES,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(f"no pieces could be learned from {len(lines)} lines of text: {error}") from error
    return [piece.piece for piece in parse_model(stream.getvalue(), "candidates").pieces if piece.type == NORMAL]


def _used(
    base: Any,  # noqa: ANN401
    lines: Sequence[str],
    characters: Sequence[str],
    merges: Sequence[str],
    wanted: int,
    progress: Callable[[str], None],
) -> list[str]:
    """Characters, and as many merges as have room and occur when the text is encoded; the rest would be dead rows.

    A merge that always goes on into a longer one does not occur itself, but there would be no longer one without it.
    """
    if len(characters) > wanted:
        raise DataError(
            findings_message(
                f"the text has {len(characters)} characters that the base lacks, and room is for {wanted} pieces",
                ["".join(characters)],
                "Ask for more pieces.",
            )
        )
    chosen, dead = list(merges[: wanted - len(characters)]), set[str]()
    waiting = iter(merges[len(chosen) :])
    while True:
        progress(f"encoding the text with {len(characters) + len(chosen)} new pieces")
        model = _with(base, [*characters, *chosen])
        needed = _with_steps(occurring(model.SerializeToString(), lines), model)
        useless = [text for text in chosen if text not in needed]
        dead.update(useless)
        chosen = [text for text in chosen if text not in dead]
        more = [text for _, text in zip(range(wanted - len(characters) - len(chosen)), waiting, strict=False)]
        chosen += more
        if not more and not useless:
            return [*characters, *chosen]


def occurring(content: bytes, lines: Sequence[str]) -> set[str]:
    """Pieces that occur when text is encoded.

    Args:
        content: A model file.
        lines: The text.
    """
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(content)
    ids = {number for encoded in processor.EncodeAsIds(list(lines)) for number in encoded}
    return {processor.IdToPiece(number) for number in ids}


def _with_steps(texts: Iterable[str], model: Any) -> set[str]:  # noqa: ANN401
    """Pieces, and those that they are merged from on the way."""
    scores = {piece.piece: piece.score for piece in model.pieces}
    return {step for text in texts for step in _steps(text, scores)}


def _steps(text: str, scores: Mapping[str, float]) -> list[str]:
    """All symbols of the byte-pair merges that end in a piece: the best-scored adjacent pair first, then the left."""
    symbols, seen = list(text), [text]
    while len(symbols) > 1:
        pairs = [(scores.get(a + b, -math.inf), -at) for at, (a, b) in enumerate(itertools.pairwise(symbols))]
        score, place = max(pairs)
        if score == -math.inf:
            break
        symbols[-place : -place + 2] = [symbols[-place] + symbols[-place + 1]]
        seen.append(symbols[-place])
    return seen


def _with(base: Any, texts: Sequence[str]) -> Any:  # noqa: ANN401
    """The base and further pieces, scored below all of its own, in their order."""
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.CopyFrom(base)
    lowest = min(piece.score for piece in base.pieces)
    for rank, text in enumerate(texts, start=1):
        model.pieces.add(piece=text, score=lowest - rank)
    model.trainer_spec.vocab_size = len(model.pieces)
    return model
