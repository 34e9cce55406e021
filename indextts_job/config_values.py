"""Convert single values of the configuration to the types of their fields."""

import difflib
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from indextts_job.errors import ConfigError
from indextts_job.strict_yaml import parse_yaml
from indextts_job.terminal import one_line
from indextts_job.variables import Expanded

LONGEST_SHOWN = 200
"""Largest number of characters of a wrong value in a message."""


def converted(hint: Any, value: object, where: str) -> Any:  # noqa: ANN401  # a type, and a value of it
    """A value as the type that a field declares.

    Args:
        hint: The type of the field: a scalar, a `Literal` of texts, a dataclass, or a tuple of texts, numbers or
            dataclasses.
        value: A value from YAML, a flag or a checkpoint.
        where: Origin and key, for messages.

    Raises:
        ConfigError: The value has another type; the message says what was found and what was expected.
    """
    if isinstance(value, Expanded):
        # Of a variable only the text is known: `steps: ${STEPS}` is a number, and a path may look like one.
        value = str(value) if hint in (str, tuple[str, ...]) else parse_yaml(value, where)
    if typing.get_origin(hint) is typing.Literal:
        return _choice(typing.get_args(hint), value, where)
    entry = next(iter(typing.get_args(hint)), None)
    if is_dataclass(hint):
        return section(hint, value, where)
    if is_dataclass(entry):
        return _sections(entry, value, where)
    convert, expected = _SCALARS.get(hint, (_texts, "a list of strings"))
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{where} is {shown(value)}, expected {expected}.") from None


def _choice(choices: Sequence[str], value: object, where: str) -> str:
    if isinstance(value, str) and value in choices:
        return value
    raise ConfigError(f"{where} is {shown(value)}, expected one of {', '.join(map(str, choices))}.")


def _sections(kind: Any, value: object, where: str) -> tuple[Any, ...]:  # noqa: ANN401  # a dataclass
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where} is {shown(value)}, expected a list of entries with keys.")
    return tuple(section(kind, one, f"{where}[{number}]") for number, one in enumerate(value))


def section(kind: Any, value: object, where: str) -> Any:  # noqa: ANN401  # a dataclass, and a value of it
    """A dataclass from keys and values, sections inside it too.

    Args:
        kind: The dataclass.
        value: A value from YAML.
        where: Origin and key, for messages.

    Raises:
        ConfigError: No keys, an unknown or missing one, or a value of another type.
    """
    known = [entry.name for entry in fields(kind)]
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {shown(value)}, expected the keys {', '.join(known)}.")
    for key in value:
        if key not in known:
            raise _unknown_key(key, known, where)
    missing = [entry.name for entry in fields(kind) if _is_needed(entry) and entry.name not in value]
    if missing:
        raise ConfigError(f"{where} has no {' and no '.join(missing)}.")
    hints = typing.get_type_hints(kind)
    return kind(**{key: converted(hints[key], one, f"{where}.{key}") for key, one in value.items()})


def _is_needed(entry: Field[Any]) -> bool:
    return entry.default is MISSING and entry.default_factory is MISSING


def _unknown_key(key: object, known: Sequence[str], where: str) -> ConfigError:
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
    hint = f"Did you mean {near[0]}?" if near else f"Expected {', '.join(known)}."
    return ConfigError(f"{where}: unknown key {shown(key)}. {hint}")


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


def _numbers(value: Any) -> tuple[float, ...]:  # noqa: ANN401
    if not isinstance(value, (list, tuple)):
        raise TypeError
    return tuple(_number(entry) for entry in value)


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
    return tuple(map(str, entries))


_SCALARS: dict[Any, tuple[Callable[[Any], object], str]] = {
    bool: (_exactly(bool), "true or false"),
    str: (_exactly(str), "a text"),
    int: (_whole, "a whole number"),
    float: (_number, "a finite number"),
    tuple[float, ...]: (_numbers, "a list of finite numbers"),
}
