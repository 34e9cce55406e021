"""The tokenizer of IndexTTS-2.5: a file of byte-pair ranks, and the special tokens that follow them. Pure.

The file has a line `base64 rank` for every token. The special tokens are not in it: they take the ids behind the
ranks, in a fixed order, so with more ranks all of them move. Source: `indextts/utils/tokenizer.py` of the release.
"""

import base64
import binascii
import re

from indextts_job.errors import DataError
from indextts_job.model.languages import CODES, WITH_TOKEN

SPLIT_PATTERN = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2's, which Whisper uses
)
"""Cuts a text into the pieces that are merged each by itself."""
_EVENTS = ("ASR", "AED", "SER", "Speech", "/Speech", "BGM", "/BGM", "Laughter", "/Laughter", "Applause", "/Applause")
_EMOTIONS = ("HAPPY", "SAD", "ANGRY", "NEUTRAL")
_TASKS = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
_VOICES = ("B", "O", "Q", "A", "CO", "CL", "H", *(f"SP{number:02d}" for number in range(1, 14)))
SPECIAL_TOKENS = tuple(
    f"<|{name}|>"
    for name in (
        *("endoftext", "startoftranscript"),
        *CODES[:WITH_TOKEN],
        *_EVENTS,
        *_EMOTIONS,
        *_TASKS,
        *(f"SPECIAL_TOKEN_{number}" for number in range(1, 31)),
        *(f"TTS/{name}" for name in _VOICES),
        *(f"{step * 0.02:.2f}" for step in range(1501)),  # time stamps
    )
)
"""In the order of their ids."""
_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}|=) (\d{1,8})")
"""The released file has one token without a byte, `=`, which no text is split into."""


def is_ranks(content: bytes) -> bool:
    """Whether a file looks like one of ranks, by its first line."""
    return bool(_LINE.fullmatch(content[:4096].split(b"\n", 1)[0].rstrip(b"\r")))


def parse_ranks(content: bytes, source: str) -> tuple[bytes, ...]:
    """The bytes of each token, in the order of their ranks.

    Args:
        content: The file.
        source: Its path or URL, for messages.

    Raises:
        DataError: A line is no token and rank, a rank is missing or twice, or a byte has no token of its own.
    """
    ranks: dict[int, bytes] = {}
    for number, line in enumerate(content.split(b"\n"), start=1):
        stripped = line.strip()
        if not stripped:
            continue
        token = _token(stripped)
        if token is None or token[0] in ranks:
            problem = "no token and rank" if token is None else f"rank {token[0]} again"
            raise DataError(
                f"{source}:{number}: {problem} ({stripped[:80]!r}). Expected `base64 rank`, each rank once."
            )
        ranks[token[0]] = token[1]
    tokens = tuple(ranks[rank] for rank in sorted(ranks))
    if list(range(len(ranks))) != sorted(ranks):
        missing = next(rank for rank in range(len(ranks) + 1) if rank not in ranks)
        raise DataError(f"{source}: rank {missing} is missing of {len(ranks)}. The file is truncated or damaged.")
    _demand_every_byte_once(tokens, source)
    return tokens


def _demand_every_byte_once(tokens: tuple[bytes, ...], source: str) -> None:
    every = set(tokens)
    if lacking := [byte for byte in range(256) if bytes([byte]) not in every]:
        raise DataError(f"{source}: byte {lacking[0]} has no token, so not every text can be encoded.")
    if len(every) < len(tokens):
        raise DataError(f"{source}: {len(tokens) - len(every)} tokens have two ranks. The file is damaged.")


def _token(line: bytes) -> tuple[int, bytes] | None:
    match = _LINE.fullmatch(line)
    try:
        if match is None or match[1] == b"=":
            return None if match is None else (int(match[2]), b"")
        return int(match[2]), base64.b64decode(match[1], validate=True)
    except binascii.Error:
        return None


def names_of(tokens: tuple[bytes, ...]) -> tuple[str, ...]:
    """A name for every id: base64 for a rank, its text for a special token."""
    return (*(base64.b64encode(token).decode() for token in tokens), *SPECIAL_TOKENS)
