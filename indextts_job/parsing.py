"""Documents that a run wrote (JSON) as frozen dataclasses, checked against their type hints, and back. Pure.

A document may come from another release, or may be damaged. It is converted once, where it is read; all later code
works with fields of known types. msgspec does the conversion.
"""

import contextlib
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, TypeVar, get_type_hints

import msgspec

T = TypeVar("T")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A whole number of at least 0 that fits 64 bits."""
AtLeastOne = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
"""A whole number of at least 1 that fits 64 bits."""
Document = Mapping[str, Any]
"""Plain JSON values that are stored and compared, but not computed with."""

# msgspec has no attribute for the path of a wrong value, only its message.
_MESSAGE = re.compile(r"(.*) - at `\$(.*)`", re.DOTALL)


def parsed(document: object, kind: type[T], name: str) -> T:
    """A document as a dataclass; keys that the dataclass does not have are left out.

    Args:
        document: Plain JSON values.
        kind: A dataclass. A field without a default must be in the document.
        name: Name of the document: the first part of every path in a message.

    Raises:
        ValueError: `name.path: Expected int, got str`, say.
    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        found = _MESSAGE.fullmatch(str(error))
        what, path = found.groups() if found else (str(error), "")
        raise ValueError(f"{name}{path}: {what.replace('`', '')}") from error


def plain(value: object) -> Any:  # noqa: ANN401  # JSON values
    """The inverse of `parsed`: dictionaries, lists and scalars; floats survive JSON bit for bit."""
    return msgspec.to_builtins(value)


def unknown_key(document: object, known: object, path: str) -> str | None:
    """The path of the first key in a document that its parsed form does not have.

    Args:
        document: As it was read.
        known: `plain` of the value parsed from it.
        path: Path of the document, for the result.

    Returns:
        None when nothing was left out.
    """
    if isinstance(document, Mapping) and isinstance(known, Mapping):
        return next(filter(None, (_unknown_at(key, value, known, path) for key, value in document.items())), None)
    if isinstance(document, list) and isinstance(known, list):
        pairs = enumerate(zip(document, known, strict=False))
        return next(filter(None, (unknown_key(one, two, f"{path}[{i}]") for i, (one, two) in pairs)), None)
    return None


def _unknown_at(key: str, value: object, known: Mapping[str, object], path: str) -> str | None:
    below = f"{path}.{key}"
    return unknown_key(value, known[key], below) if key in known else below


def parsed_leniently(document: object, kind: type[T]) -> T:
    """A document as a dataclass whose fields all have defaults. A field with a wrong value gets its default.

    For side records: a damaged one must not stop a training.

    Args:
        document: Plain JSON values, or anything else.
        kind: A dataclass.
    """
    given = document if isinstance(document, Mapping) else {}
    hints = get_type_hints(kind, include_extras=True)
    good = {}
    for name, hint in hints.items():
        # Field by field: one wrong value must not cost the others.
        with contextlib.suppress(msgspec.ValidationError, LookupError):
            good[name] = msgspec.convert(given[name], hint)
    return kind(**good)


def is_instant(text: object) -> bool:
    """Whether a value is a time in ISO 8601 with its offset from UTC. Only such times can be compared."""
    if not isinstance(text, str):
        return False
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
