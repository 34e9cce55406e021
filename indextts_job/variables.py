"""Environment variables in a run.yaml: `${DATA}` and `${DATA:-data}`.

They are replaced when a file of this machine is read. Places (paths, URLs, names) are recorded as they were written, so
that the record of a run fits the next machine; numbers and choices are recorded as what they were, because they decide
what a step computes. A record is never expanded: whoever may write a bucket could have the secrets of an environment
sent anywhere.
"""

import re
from collections.abc import Mapping
from typing import Any

from indextts_job.errors import ConfigError
from indextts_job.terminal import one_line

_VARIABLE = re.compile(r"\$(?P<literal>\$\{)|\$\{(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^{}]*))?\}|(?P<broken>\$\{)")


PLACES = ("run", "inputs", "data", "report", "storage")
"""Keys and sections whose texts name places."""


class Expanded(str):
    """A text in which variables were replaced: it may stand for a number."""

    __slots__ = ()


def has_variables(value: object) -> bool:
    """Whether a value, or one in it, holds a variable."""
    if isinstance(value, str):
        return any(found["name"] for found in _VARIABLE.finditer(value))
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(has_variables, inner))


def written_places(flat: Mapping[str, object]) -> dict[str, object]:
    """What is recorded as it was written, by dotted key.

    Args:
        flat: A document as it was read, flattened.
    """
    return {key: value for key, value in flat.items() if key.partition(".")[0] in PLACES and has_variables(value)}


def with_variables(document: object, environment: Mapping[str, str], where: str, key: str = "") -> Any:  # noqa: ANN401
    """The values of a document with variables replaced. `$${` stands for `${`.

    Args:
        document: Plain values.
        environment: The variables. One that is empty counts as set, as in a shell without `:`; `:-` takes the default
            for it too.
        where: The file, for messages.
        key: Dotted key of the document.

    Raises:
        ConfigError: A variable is not set and has no default, or `${` begins none.
    """
    if isinstance(document, dict):
        return {
            name: with_variables(value, environment, where, f"{key}.{name}".lstrip("."))
            for name, value in document.items()
        }
    if isinstance(document, list):
        return [with_variables(value, environment, where, f"{key}[{place}]") for place, value in enumerate(document)]
    if not isinstance(document, str) or "${" not in document:
        return document
    return Expanded(_VARIABLE.sub(lambda found: _value(found, environment, f"{where}: {key}"), document))


def _value(found: re.Match[str], environment: Mapping[str, str], where: str) -> str:
    if found["literal"]:
        return "${"
    if found["broken"]:
        raise ConfigError(f"{where}: expected ${{NAME}} or ${{NAME:-default}}; $${{ stands for ${{ itself.")
    name, default = found["name"], found["default"]
    value = environment.get(name)
    if default is not None:
        return value or default
    if value is None:
        raise ConfigError(
            f"{where}: the environment variable {one_line(name)} is not set. Set it, or give a default: "
            f"${{{one_line(name)}:-default}}."
        )
    return value
