"""Which characters have a token of their own, and which tokens a text of these characters cannot hold. Pure.

In UTF-8 the bytes of a character never occur inside another one or across two, and neither do its first bytes but at
the beginning of a character. So a token that holds a character, or the beginning of one, shows what a text must hold
for it to occur.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

_CONTINUATION = range(0x80, 0xC0)


@dataclass(frozen=True, slots=True)
class OwnCharacters:
    """The characters that have a token of their own."""

    characters: frozenset[bytes]
    """In UTF-8."""
    beginnings: frozenset[bytes]
    """The first bytes of each."""

    @classmethod
    def of(cls, tokens: Iterable[bytes]) -> Self:
        """Those of a file of ranks."""
        own = frozenset(token for token in tokens if _is_character(token))
        return cls(own, frozenset(token[:size] for token in own for size in range(1, len(token))))

    def has(self, letter: str) -> bool:
        """Whether a character has a token."""
        return letter.encode(errors="replace") in self.characters

    def without(self, text: str) -> set[str]:
        """The characters of a text that have no token."""
        return {letter for letter in set(text) if not self.has(letter)}

    def cannot_spell(self, token: bytes) -> bool:
        """Whether a token never occurs in a text of these characters: what a new token has to hold."""
        return not all(part in self.characters or part in self.beginnings for part in _characters(token))


def number_of_characters(token: bytes) -> int:
    """Number of characters that begin in a token."""
    return sum(byte not in _CONTINUATION for byte in token)


def _is_character(token: bytes) -> bool:
    try:
        return len(token.decode()) == 1
    except UnicodeDecodeError:
        return False


def _characters(token: bytes) -> list[bytes]:
    """The characters that begin in a part of a text; of the last one perhaps only the first bytes.

    The end of a character that begins outside is left out, since many characters end so.
    """
    found: list[bytes] = []
    for byte in token:
        if byte not in _CONTINUATION:
            found.append(bytes([byte]))
        elif found:
            found[-1] += bytes([byte])
    return found
