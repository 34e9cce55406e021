"""Documents that a run wrote (JSON) as frozen dataclasses, checked against their type hints, and back. Pure.

A document may come from another release, or may be damaged. It is converted once, where it is read; all later code
works with fields of known types. msgspec does the conversion.
"""

import contextlib
import re
from collections.abc import Collection, Mapping
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
    """The inverse of `parsed`: dictionaries, tuples, lists and scalars; floats survive JSON bit for bit."""
    return msgspec.to_builtins(value)


def different_key(document: object, known: object, optional: Collection[str], path: str) -> str | None:
    """The first key that only a document or only its parsed form has, with what is wrong with it.

    msgspec leaves unknown keys out and gives missing ones their defaults, which is wrong where every value counts.

    Args:
        document: As it was read.
        known: `plain` of the value parsed from it.
        optional: Names of keys that may be missing.
        path: Path of the document, for the result.

    Returns:
        None when both have the same keys.
    """
    if isinstance(document, Mapping) and isinstance(known, Mapping):
        return _different_entry(document, known, optional, path)
    if isinstance(document, (list, tuple)) and isinstance(known, (list, tuple)):
        pairs = enumerate(zip(document, known, strict=False))
        return next(filter(None, (different_key(a, b, optional, f"{path}[{i}]") for i, (a, b) in pairs)), None)
    return None


def _different_entry(
    document: Mapping[str, object], known: Mapping[str, object], optional: Collection[str], path: str
) -> str | None:
    for key in known:
        if key not in document and key not in optional:
            return f"{path}.{key} is missing"
    for key, value in document.items():
        if key not in known:
            return f"{path}.{key} is a key that this release does not know"
        if found := different_key(value, known[key], optional, f"{path}.{key}"):
            return found
    return None


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
