"""Values as YAML text inside a template; a YAML reader gets exactly the given values back. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

NOTHING = "\0"
"""Stands for an optional part that is left out; the renderer drops its line."""
_NO_FOLDING = 1_000_000
_OTHER_LINE_BREAKS = "\x85\u2028\u2029"
"""YAML also ends a line at these characters, and what follows one in a block would not be indented."""


class _Dumper(yaml.SafeDumper):
    """Indents lists inside mappings, as the template does; PyYAML does not."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        super().increase_indent(flow, False)  # noqa: FBT003  # PyYAML's signature


def block(value: Mapping[str, Any] | Sequence[Any], indent: int) -> str:
    """A mapping or list as lines in block style."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_NO_FOLDING)
    return indented(text, indent)


def optional(key: str, value: Mapping[str, Any] | Sequence[Any] | str, indent: int) -> str:
    """A key and its value, or `NOTHING` for an empty value.

    The API server drops empty fields, so `kubectl apply` would see a difference each time.
    """
    return block({key: value}, indent) if value else NOTHING


def scalar(text: str) -> str:
    """A text on one line, for use after `key: `; quoted where YAML would read it as another type."""
    # A list, because PyYAML ends a lone scalar with a document end marker (`...`).
    listed = yaml.dump([text], default_flow_style=True, allow_unicode=True, width=_NO_FOLDING)
    return listed.strip()[1:-1]


def literal(key: str, text: str, indent: int) -> str:
    """A key and a text of several lines as a literal block, which ends with one line break."""
    text = text.rstrip() + "\n"
    if any(mark in text for mark in _OTHER_LINE_BREAKS):
        quoted = yaml.dump(text, default_style='"', allow_unicode=True, width=_NO_FOLDING).strip()
        return f"{' ' * indent}{key}: {quoted}"
    # A reader takes the indentation of a block from its first line, unless the block's header states it (`|2`).
    content = next((line for line in text.split("\n") if line.strip()), "")
    mark = "|2" if content.startswith((" ", "\t")) else "|"
    return f"{' ' * indent}{key}: {mark}\n{indented(text, indent + 2)}"


def indented(text: str, indent: int) -> str:
    """The lines of a text, indented; empty lines stay empty."""
    return "\n".join(" " * indent + line if line.strip() else "" for line in text.rstrip().split("\n"))
