"""Append pieces for a new language to a base tokenizer, without changing how base text is tokenized.

A byte-pair tokenizer merges the adjacent pair with the best score, so a new piece changes base text only if it can be
formed there. Every appended piece therefore contains at least one character that no base piece contains, and can never
be formed in a text of base characters.

New characters are appended first and merges after them, in the order in which they were learned. (SentencePiece lists
characters last, so a shortened list of its candidates would lose them.)
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
"""Values of the format's enums: the type of an ordinary piece, and the type of a byte-pair model."""
CANDIDATES_PER_PIECE = 2
"""Number of learned candidates per wanted piece: many of them are base pieces, or have no new character."""
SPACE = "\u2581"
"""SentencePiece writes a space as this character."""
_LONGEST_LINE_BYTES = 1 << 20
"""SentencePiece silently leaves out lines longer than its own limit of 4192 bytes."""


@dataclass(frozen=True, slots=True)
class Extension:
    """An extended tokenizer."""

    content: bytes
    """The model file."""
    base_pieces: int
    pieces: int
    characters: int
    """Number of new pieces that are single characters."""


def extend(
    base: bytes, lines: Sequence[str], pieces: int, progress: Callable[[str], None] = lambda _doing: None
) -> Extension:
    """Append pieces for a new language.

    Args:
        base: Model file of the base tokenizer, which has to be a byte-pair model.
        lines: Normalised text of the new language.
        pieces: Number of pieces of the result.
        progress: Called with a line that says what is being done.

    Returns:
        The extension; the same bytes for the same arguments.

    Raises:
        ConfigError: The base is no byte-pair model, or it has so many pieces already.
        DataError: The text does not give so many useful pieces.
    """
    model = parse_model(base, "base tokenizer")
    _demand_extendable(model, pieces)
    wanted = pieces - len(model.pieces)
    new_characters = sorted(set().union(*lines) - characters_of(model) - {" "})
    if not new_characters:
        raise DataError(
            "the text has no character that the base tokenizer lacks: there is nothing to extend it for. Use the base "
            "tokenizer as it is."
        )
    progress(f"learning candidates from {len(lines)} lines")
    merges = _merges(lines, model, CANDIDATES_PER_PIECE * pieces, set(new_characters))
    chosen = _used(model, lines, new_characters, merges, wanted, progress)
    if len(chosen) < wanted:
        most = len(model.pieces) + len(chosen)
        raise DataError(
            f"{len(lines)} lines give {len(chosen)} useful new pieces ({len(new_characters)} of them characters), "
            f"{wanted} are wanted. Give more text, or ask for at most {most} pieces."
        )
    content: bytes = _with(model, chosen).SerializeToString()
    return Extension(content, len(model.pieces), pieces, len(new_characters))


def _demand_extendable(model: Any, pieces: int) -> None:  # noqa: ANN401
    if model.trainer_spec.model_type != BPE:
        raise ConfigError("the base tokenizer is no byte-pair model; only such a model can be extended piece by piece.")
    if pieces <= len(model.pieces):
        raise ConfigError(
            f"the base tokenizer has {len(model.pieces)} pieces, {pieces} are wanted. An extension is larger."
        )


def parse_model(content: bytes, what: str) -> Any:  # noqa: ANN401  # classes of the format are made at import
    """A SentencePiece model, with its pieces.

    Args:
        content: The model file.
        what: Name of the file in messages.

    Raises:
        DataError: The content is no SentencePiece model.
    """
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(content)
        for piece in model.pieces:
            piece.piece.encode()  # strings are decoded at the first access, so wrong UTF-8 is found only here
    except Exception as error:
        raise DataError(f"{what}: not a SentencePiece model ({len(content)} bytes). Expected a .model file.") from error
    if not model.pieces:  # an empty file is a valid message of the format
        raise DataError(f"{what}: a SentencePiece model without pieces.")
    return model


def characters_of(model: Any) -> set[str]:  # noqa: ANN401
    """Every character that occurs in an ordinary piece of a model."""
    return {letter for piece in model.pieces if piece.type == NORMAL for letter in piece.piece}


def _merges(lines: Sequence[str], base: Any, count: int, new_characters: set[str]) -> list[str]:  # noqa: ANN401
    """Learned pieces of several characters with a new one among them, in the order in which they were learned."""
    known = {piece.piece for piece in base.pieces}
    learned = _candidates(lines, base, count)
    return [text for text in learned if len(text) > 1 and text not in known and new_characters.intersection(text)]


def _candidates(lines: Sequence[str], base: Any, count: int) -> list[str]:  # noqa: ANN401
    """The pieces of a tokenizer of the new language alone, in the order in which they were learned."""
    stream = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=stream,
            model_type="bpe",
            vocab_size=count,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",  # the lines are normalised already
            split_digits=base.trainer_spec.split_digits,
            split_by_unicode_script=base.trainer_spec.split_by_unicode_script,
            split_by_number=base.trainer_spec.split_by_number,
            max_sentencepiece_length=base.trainer_spec.max_sentencepiece_length,
            max_sentence_length=_LONGEST_LINE_BYTES,
            num_threads=1,  # the same pieces on every machine
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
    """All characters, and the first `wanted - characters` merges that are of use when the text is encoded.

    The row of a piece that never occurs would never be trained. A merge is of use if it occurs, or if a longer one
    that occurs is made from it.
    """
    room = wanted - len(characters)
    if room < 0:
        raise DataError(
            findings_message(
                f"the text has {len(characters)} characters that the base lacks, and room is for {wanted} pieces",
                ["".join(characters)],
                "Ask for more pieces.",
            )
        )
    chosen, waiting = list(merges[:room]), iter(merges[room:])
    # Candidates take the places of useless pieces. Each change may make others useless, so it is tried again.
    while True:
        progress(f"encoding the text with {len(characters) + len(chosen)} new pieces")
        model = _with(base, [*characters, *chosen])
        needed = _with_steps(occurring(model.SerializeToString(), lines), model)
        useful = [text for text in chosen if text in needed]
        more = list(itertools.islice(waiting, room - len(useful)))
        if not more and len(useful) == len(chosen):
            return [*characters, *chosen]
        chosen = [*useful, *more]


def occurring(content: bytes, lines: Sequence[str]) -> set[str]:
    """The pieces that occur when text is encoded.

    Args:
        content: A model file.
        lines: The text to encode.
    """
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(content)
    ids = {number for encoded in processor.EncodeAsIds(list(lines)) for number in encoded}
    return {processor.IdToPiece(number) for number in ids}


def _with_steps(texts: Iterable[str], model: Any) -> set[str]:  # noqa: ANN401
    """Pieces, and the shorter pieces that they are merged from."""
    scores = {piece.piece: piece.score for piece in model.pieces}
    return {step for text in texts for step in _steps(text, scores)}


def _steps(text: str, scores: Mapping[str, float]) -> list[str]:
    """A piece and all symbols on the way to it: byte-pair encoding merges the adjacent pair with the best score.

    Of pairs with the same score the leftmost is merged first.
    """
    symbols, seen = list(text), [text]
    while len(symbols) > 1:
        # The negative index makes max() choose the leftmost pair.
        pairs = [(scores.get(a + b, -math.inf), -at) for at, (a, b) in enumerate(itertools.pairwise(symbols))]
        score, place = max(pairs)
        if score == -math.inf:
            break
        symbols[-place : -place + 2] = [symbols[-place] + symbols[-place + 1]]
        seen.append(symbols[-place])
    return seen


def _with(base: Any, texts: Sequence[str]) -> Any:  # noqa: ANN401
    """The base with further pieces, whose scores are below all scores of the base and fall in their order."""
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.CopyFrom(base)
    lowest = min(piece.score for piece in base.pieces)
    for rank, text in enumerate(texts, start=1):
        model.pieces.add(piece=text, score=lowest - rank)
    model.trainer_spec.vocab_size = len(model.pieces)
    return model
