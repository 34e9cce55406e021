"""Append tokens for a new language to a file of ranks, without changing how texts of the base's languages are encoded.

Every text can be encoded with a file of ranks, one byte at a time if need be. An extension only makes texts of the new
language shorter. A new token may stand only where the base has no token for a character: it holds such a character
whole, or ends with the first bytes of one, where all characters that begin so have no token. UTF-8 never lets these
bytes occur in a text of other characters, so such a text keeps its ids, but that special tokens move up.

The new ranks are higher than all of the base, so the base's merges still come first: new tokens are learned from what
the base makes of a text.
"""

import base64
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from indextts_job.errors import ConfigError, DataError
from indextts_job.tokenizer.encoding import encoding
from indextts_job.tokenizer.loading import Tokenizer
from indextts_job.tokenizer.merges import Merges, Word
from indextts_job.tokenizer.own_characters import OwnCharacters, number_of_characters
from indextts_job.tokenizer.ranks import SPECIAL_TOKENS, SPLIT_PATTERN, parse_ranks

LONGEST_CHARACTERS = 16
"""SentencePiece's limit of a piece. Without one whole words become tokens, which speech learns from a few samples."""
_CONTROL = r"<\|[^|]+\|>"


def extend_ranks(
    base: Tokenizer, lines: Sequence[str], pieces: int, progress: Callable[[str], None] = lambda _doing: None
) -> bytes:
    """Append tokens for a new language.

    Args:
        base: A file of ranks.
        lines: Text of the new language as inference encodes it, with its prefix.
        pieces: Number of ids of the result, special tokens among them.
        progress: Called with a line that says what is being done.

    Returns:
        The extended file; the same bytes for the same arguments.

    Raises:
        ConfigError: The base has so many ids already.
        DataError: The text does not give so many tokens.
    """
    if pieces <= base.pieces:
        raise ConfigError(
            f"the base tokenizer has {base.pieces} ids, {len(SPECIAL_TOKENS)} of them special, and {pieces} are "
            "wanted. An extension is larger."
        )
    tokens = parse_ranks(base.content, "base tokenizer")
    own = OwnCharacters.of(tokens)
    progress(f"encoding {len(lines)} lines")
    words = _words(base, tokens, lines, own)
    if not words:
        raise DataError(
            "every character of the text has a token in the base tokenizer. New tokens for them would change how the "
            "base's languages are encoded: use the base tokenizer as it is."
        )
    wanted = pieces - base.pieces
    progress(f"learning {wanted} tokens from {len(words)} different words")
    learned = _used(Merges(words, tokens, lambda token: _may_be_token(token, own)), wanted)
    if len(learned) < wanted:
        raise DataError(
            f"{len(lines)} lines give {len(learned)} useful new tokens, {wanted} are wanted. Give more text, or ask "
            f"for at most {base.pieces + len(learned)} pieces."
        )
    return _appended(base.content, len(tokens), learned)


def _words(base: Tokenizer, tokens: Sequence[bytes], lines: Sequence[str], own: OwnCharacters) -> Counter[Word]:
    """The pieces of the lines that hold a character without a token, as the base encodes them, and their numbers."""
    encode = encoding(base.content).encode_ordinary
    counts = Counter(piece for line in lines for piece in _pieces(line))
    return Counter(
        {tuple(tokens[number] for number in encode(piece)): n for piece, n in counts.items() if own.without(piece)}
    )


def _pieces(line: str) -> Iterator[str]:
    """What the encoder merges each by itself."""
    import regex  # noqa: PLC0415  # the standard library knows no classes of Unicode; IndexTTS-2.0 does without it

    for part in regex.split(_CONTROL, line):
        yield from regex.findall(SPLIT_PATTERN, part)


def _used(merges: Merges, wanted: int) -> list[bytes]:
    """The first `wanted` tokens that occur in the text, or from which one is merged that does."""
    chosen = list(itertools.islice(merges, wanted))
    while True:
        in_use = merges.in_use()
        useful = [token for token in chosen if token in in_use]
        # A whole word can take the place of the tokens that it was merged from, so that they occur no more.
        if len(useful) == len(chosen):
            return chosen
        chosen = [*useful, *itertools.islice(merges, wanted - len(useful))]


def _appended(content: bytes, ranks: int, tokens: Sequence[bytes]) -> bytes:
    # The base's bytes stay as they are, also where they are odd.
    added = (b"%s %d\n" % (base64.b64encode(token), ranks + place) for place, token in enumerate(tokens))
    return content + (b"" if content.endswith(b"\n") else b"\n") + b"".join(added)


def _may_be_token(token: bytes, own: OwnCharacters) -> bool:
    return number_of_characters(token) <= LONGEST_CHARACTERS and own.cannot_spell(token)
