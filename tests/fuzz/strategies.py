"""Input from outside as it may be: values of every kind in every place, and damaged bytes."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

ODD_TEXTS = (
    *("", " ", "\0", "\ud800", "\u2028", "\x85", "\r", "a\nb", "\x1b[2J", "../../x", "/etc/passwd", "~nosuchuser/x"),
    *("s3://", "s3://b", "zip://a::http://b", "reference://a::b", "http://[", "memory://", "file:///dev/zero", "C:\\a"),
    *("/dev/zero", "/dev/stdin", "x" * 300, "x/" * 3000, "9" * 5000, ".inf", "nan", "010", "1:0", "1_0", "0x1F", "<<"),
    *("2024-02-31", "yes", "null", "~", "[" * 500, "{" * 500, "&a [*a]", "!!python/name:os.system", "a: b", "%", "- -"),
    *("text_loss < 3 by 9", "text_loss < 1e999 by 9", "auto", "none", "true"),
)
ODD_NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, 10**30, -(10**30), 1e308, -1e308, 1e-320, float("inf"), float("nan"), 0.5)


def texts() -> st.SearchStrategy[str]:
    """Text that files hold, half characters among it."""
    return st.sampled_from(ODD_TEXTS) | st.text(st.characters(exclude_categories=()), max_size=20)


def values() -> st.SearchStrategy[Any]:
    """Plain values of every kind and depth."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(ODD_NUMBERS) | texts()
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts(), inner, max_size=3), max_leaves=6
    )


@st.composite
def changed(draw: st.DrawFn, document: Any, most: int = 2) -> Any:
    """A document in which something is another value, missing, or there besides."""
    result = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(result))
        container, key = places[draw(st.integers(0, len(places) - 1))]
        what = draw(st.sampled_from(("another", "another", "missing", "besides")))
        if what == "another":
            container[key] = draw(values())
        elif what == "missing":
            del container[key]
        elif isinstance(container, dict):
            container[draw(texts())] = draw(values())
        else:
            container.insert(0, draw(values()))
        if not result:
            break
    return result


def _places(value: Any) -> Any:
    if isinstance(value, dict):
        for key in value:
            yield value, key
            yield from _places(value[key])
    elif isinstance(value, list):
        for index in range(len(value)):
            yield value, index
            yield from _places(value[index])


@dataclass(frozen=True)
class Damage:
    """One thing that happened to bytes; its text in a report is short, however long they are."""

    what: str
    place: int
    number: int

    def applied(self, content: bytes) -> bytes:
        """The bytes after it."""
        result = bytearray(content)
        place = self.place % (len(result) or 1)
        if not result:
            return content
        if self.what == "set":
            result[place] = self.number % 256
        elif self.what == "flip":
            result[place] ^= 1 << self.number % 8
        elif self.what == "cut":
            del result[place:]
        elif self.what == "hole":
            del result[place : place + 1 + self.number % 64]
        elif self.what == "twice":
            result[place:place] = result[place : place + 1 + self.number % 64]
        else:  # a size or an offset that lies
            result[place : place + 8] = self.number.to_bytes(8, "little")
        return bytes(result)


def damages() -> st.SearchStrategy[list[Damage]]:
    """Some damage, near the beginning or anywhere."""
    places = st.integers(0, 600) | st.integers(0, 2**40)
    numbers = st.integers(0, 255) | st.sampled_from((2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1))
    kinds = st.sampled_from(("set", "flip", "cut", "hole", "twice", "number"))
    return st.lists(st.builds(Damage, kinds, places, numbers), min_size=1, max_size=4)


def damaged(content: bytes, by: Iterable[Damage]) -> bytes:
    """Bytes after some damage."""
    for damage in by:
        content = damage.applied(content)
    return content
