"""Convert single values of the configuration to the types of their fields."""

import math
import typing
from collections.abc import Callable
from typing import Any

from indextts_job.errors import ConfigError
from indextts_job.terminal import one_line

LONGEST_SHOWN = 200
"""Largest number of characters of a wrong value in a message."""


def converted(hint: Any, value: object, where: str) -> Any:  # noqa: ANN401  # a type, and a value of it
    """A value as the type that a field declares.

    Args:
        hint: The type of the field: a scalar, a `Literal` of texts, or a tuple of texts.
        value: A value from YAML, a flag or a checkpoint.
        where: Origin and key, for messages.

    Raises:
        ConfigError: The value has another type; the message says what was found and what was expected.
    """
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        if isinstance(value, str) and value in choices:
            return value
        raise ConfigError(f"{where} is {shown(value)}, expected one of {', '.join(map(str, choices))}.")
    convert, expected = _SCALARS.get(hint, (_texts, "a list of strings"))
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{where} is {shown(value)}, expected {expected}.") from None


def shown(value: object) -> str:
    """A value for a message: on one line, and shortened."""
    text = one_line(repr(value))
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def _whole(value: Any) -> int:  # noqa: ANN401
    # 1.0 is a whole number too: JSON makes no difference. `True` and "1" are no numbers, though Python converts them.
    if isinstance(value, (bool, str)) or int(value) != value:
        raise ValueError
    return int(value)


def _number(value: Any) -> float:  # noqa: ANN401
    if isinstance(value, (bool, str)) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _exactly(kind: type) -> Callable[[object], object]:
    def convert(value: object) -> object:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return convert


def _texts(value: object) -> tuple[str, ...]:
    # One text stands for a list with one entry.
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, str) for entry in entries):
        raise TypeError
    return tuple(entries)


_SCALARS: dict[type, tuple[Callable[[Any], object], str]] = {
    bool: (_exactly(bool), "true or false"),
    str: (_exactly(str), "a text"),
    int: (_whole, "a whole number"),
    float: (_number, "a finite number"),
}
