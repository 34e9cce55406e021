"""Load a tokenizer, a SentencePiece model or a file of byte-pair ranks, and identify it by its pieces."""

import hashlib
from dataclasses import dataclass

import sentencepiece

from indextts_job.errors import ConfigError, DataError
from indextts_job.model.languages import TOKENS_BEFORE
from indextts_job.redaction import redacted
from indextts_job.storage import files
from indextts_job.tokenizer.ranks import is_ranks, names_of, parse_ranks

LARGEST_MODEL_BYTES = 2**28
"""A larger file is refused unread; the released tokenizer has half a megabyte."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A model file and its pieces."""

    content: bytes
    """The model file."""
    piece_names: tuple[str, ...]
    ranks: int | None = None
    """Number of byte-pair ranks, behind which the special tokens begin; None for a SentencePiece model."""

    def new_pieces_at(self, base_pieces: int) -> int | None:
        """Id of the first piece that this extension has added to its base; None = behind all pieces of it.

        Args:
            base_pieces: Number of pieces of the base.
        """
        # New ranks stand behind the base's, in front of the special tokens.
        return None if self.ranks is None else self.ranks - (self.pieces - base_pieces)

    @property
    def first_language_token(self) -> int | None:
        """Id of the first language's token; None for a SentencePiece model, which has none."""
        return None if self.ranks is None else self.ranks + TOKENS_BEFORE

    @property
    def sha256(self) -> str:
        """Hash of the model file."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pieces(self) -> int:
        """Number of pieces."""
        return len(self.piece_names)

    def fingerprint(self, pieces: int | None = None) -> str:
        """SHA-256 of the names of all pieces in order, or of those of its base.

        Args:
            pieces: Number of pieces of a base that it may be an extension of; None = its own.
        """
        # Names and not the file's bytes: without its new pieces an extension has the fingerprint of the base.
        names = self.piece_names
        if pieces is not None:
            at = self.new_pieces_at(pieces)
            at = pieces if at is None else max(0, at)
            names = (*names[:at], *names[at + len(names) - pieces :])
        return hashlib.sha256("\n".join(names).encode()).hexdigest()


def load_tokenizer(url: str) -> Tokenizer:
    """Read a tokenizer.

    Raises:
        ConfigError: The file does not exist.
        DataError: It is neither a SentencePiece model nor a file of ranks.
    """
    content = files.read_input(url, "tokenizer", "inputs.tokenizer", LARGEST_MODEL_BYTES)
    return parse_tokenizer(content, redacted(url))


def parse_tokenizer(content: bytes, source: str) -> Tokenizer:
    """A tokenizer from the bytes of its model file.

    Raises:
        DataError: They are no tokenizer, or the name of a piece is not UTF-8.
    """
    if is_ranks(content):
        tokens = parse_ranks(content, source)
        return Tokenizer(content, names_of(tokens), len(tokens))
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
        names = tuple(processor.IdToPiece(i) for i in range(processor.GetPieceSize()))
    except (RuntimeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{source}: not a SentencePiece model, or damaged ({len(content)} bytes). Expected a .model file, or for "
            "IndexTTS-2.5 its .tiktoken file."
        ) from error
    return Tokenizer(content, names)


def demand_base_pieces(tokenizer: Tokenizer, base_pieces: int, source: str) -> None:
    """Refuse a tokenizer smaller than the base checkpoint's.

    Raises:
        ConfigError: The tokenizer is smaller; the message names both sizes.
    """
    if tokenizer.pieces < base_pieces:
        raise ConfigError(
            f"{source}: the tokenizer has {tokenizer.pieces} pieces, the base checkpoint knows {base_pieces}. "
            "Use the base tokenizer or an extension of it, which has all its pieces."
        )
