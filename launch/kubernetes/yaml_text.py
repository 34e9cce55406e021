"""Values as YAML text inside a template: whatever they hold, a reader gets back what was given. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

NOTHING = "\0"
"""In place of an optional part: its line is dropped."""
_NO_FOLDING = 1_000_000
_OTHER_LINE_BREAKS = "\x85\u2028\u2029"
"""YAML ends lines at these too, so a block that holds one would lose its indentation behind it."""


class _Dumper(yaml.SafeDumper):
    """Lists are indented, as in the rest of the manifest."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        super().increase_indent(flow, False)  # noqa: FBT003  # PyYAML's signature


def block(value: Mapping[str, Any] | Sequence[Any], indent: int) -> str:
    """A mapping or list as lines."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_NO_FOLDING)
    return indented(text, indent)


def optional(key: str, value: Mapping[str, Any] | Sequence[Any] | str, indent: int) -> str:
    """Nothing at all when empty: the API server drops an empty field, and `kubectl apply` would add it each time."""
    return block({key: value}, indent) if value else NOTHING


def scalar(text: str) -> str:
    """A text behind `key: ` on one line, quoted where it would be read as something else."""
    listed = yaml.dump([text], default_flow_style=True, allow_unicode=True, width=_NO_FOLDING)
    return listed.strip()[1:-1]


def literal(key: str, text: str, indent: int) -> str:
    """A key and a text of several lines as it stands, ending with one line break."""
    text = text.rstrip() + "\n"
    if any(mark in text for mark in _OTHER_LINE_BREAKS):
        quoted = yaml.dump(text, default_style='"', allow_unicode=True, width=_NO_FOLDING).strip()
        return f"{' ' * indent}{key}: {quoted}"
    # The first line decides how far a block is indented, unless the block says it itself.
    content = next((line for line in text.split("\n") if line.strip()), "")
    mark = "|2" if content.startswith((" ", "\t")) else "|"
    return f"{' ' * indent}{key}: {mark}\n{indented(text, indent + 2)}"


def indented(text: str, indent: int) -> str:
    """Lines moved to the right; empty ones stay empty."""
    return "\n".join(" " * indent + line if line.strip() else "" for line in text.rstrip().split("\n"))
