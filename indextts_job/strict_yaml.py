"""YAML as this product reads it, wherever it does: the core schema of YAML 1.2, one meaning for every document.

PyYAML's own loaders follow YAML 1.1: `010` is eight, `1:0` is sixty, `no` is false, a date is an object that no JSON
can hold, the last of two equal keys wins, and a few aliases unfold to gigabytes. Here numbers are those of YAML 1.2,
only `true` and `false` are truth values, dates are texts, and what can only be a mistake is refused.
"""

import re
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from indextts_job.errors import ConfigError
from indextts_job.terminal import one_line

LARGEST_BYTES = 2**22
"""Of a file; a configuration has some thousands."""
DEEPEST = 32
"""Levels of nesting; a configuration has three."""
LONGEST_NUMBER = 40
"""Characters of a number; no key takes one that needs more."""
_CORE = "tag:yaml.org,2002:"
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def parse_yaml(content: str | bytes, where: str) -> object:
    """The document as plain values: None, bool, int, finite float, str, list, and dict with text keys.

    Args:
        content: The whole document; None for an empty one.
        where: Path, URL or argument, for messages.

    Raises:
        ConfigError: It is not YAML, or holds what no configuration can mean: equal keys, aliases, numbers that are
            infinite or endless, other types, deep nesting. Names line and key.
    """
    try:
        loader = _Loader(content)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {one_line(error.problem or error.context)}.") from error
    except (yaml.YAMLError, UnicodeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: not valid YAML: {one_line(error)}.") from error
    return None if node is None else _Values(where).of(node, "")


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """Composes nodes with the core schema's tags; put together as yaml.SafeLoader is, without its constructor."""

    def __init__(self, content: str | bytes) -> None:
        Reader.__init__(self, content)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """One node, unless it is an alias or lies too deep; both could cost any amount of memory or stack."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            problem = f"the alias *{event.anchor} is not read; write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        if self._depth == DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"more than {DEEPEST} levels of nesting", problem_mark=event.start_mark)
        self._depth += 1
        node: Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+0123456789.")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    _Loader.add_implicit_resolver(_CORE + _tag, re.compile(rf"(?:{_pattern})\Z"), _first)


class _Values:
    """Nodes to plain values; knows the place of each for messages."""

    def __init__(self, where: str) -> None:
        self._where = where

    def of(self, node: Node, key: str) -> object:
        """The value of a node; `key` is its dotted key."""
        if isinstance(node, MappingNode) and node.tag == f"{_CORE}map":
            return self._mapping(node, key)
        if isinstance(node, SequenceNode) and node.tag == f"{_CORE}seq":
            return [self.of(entry, f"{key}[{place}]") for place, entry in enumerate(node.value)]
        if isinstance(node, ScalarNode):
            return self._scalar(node, key)
        raise self._wrong(node, key, f"of the type {node.tag}", "plain values")

    def _mapping(self, node: MappingNode, key: str) -> dict[str, object]:
        values: dict[str, object] = {}
        lines: dict[str, int] = {}
        for name_node, value_node in node.value:
            name = self.of(name_node, key)
            if not isinstance(name, str):
                raise self._wrong(name_node, f"a key of {key or 'the document'}", repr(name), "text; quote it")
            dotted = f"{key}.{name}" if key else name
            line = name_node.start_mark.line + 1
            if name in lines:
                raise ConfigError(
                    f"{self._where}: {one_line(dotted)} stands in line {lines[name]} and again in line {line}. "
                    "Keep one of them."
                )
            lines[name] = line
            values[name] = self.of(value_node, dotted)
        return values

    def _scalar(self, node: ScalarNode, key: str) -> object:
        text: str = node.value
        kind = node.tag.removeprefix(_CORE)
        if kind == "str":
            if _UNSTORABLE.search(text):
                raise self._wrong(node, key, "text with a NUL or half a character", "text that can be stored")
            return text
        if kind == "null" and text in ("", "~", "null", "Null", "NULL"):
            return None
        if kind == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind in ("int", "float"):
            return self._number(node, key, kind)
        raise self._wrong(node, key, f"of the type {node.tag}", "a plain value")

    def _number(self, node: ScalarNode, key: str, kind: str) -> int | float:
        text: str = node.value
        shown = text if len(text) <= LONGEST_NUMBER else f"a number of {len(text)} characters"
        if len(text) > LONGEST_NUMBER or "_" in text:
            raise self._wrong(node, key, shown, f"digits, at most {LONGEST_NUMBER}")
        try:
            if kind == "int":
                return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
            number = float(text)
        except ValueError:
            # A tag written out (`!!int x`), or .inf and .nan.
            raise self._wrong(node, key, shown, "a finite number") from None
        if number - number != 0:  # infinite: 1e999
            raise self._wrong(node, key, shown, "a finite number")
        return number

    def _wrong(self, node: Node, key: str, found: str, expected: str) -> ConfigError:
        what = one_line(key) or "the document"
        line = node.start_mark.line + 1
        return ConfigError(f"{self._where}, line {line}: {what} is {one_line(found)}, expected {expected}.")
