"""Read YAML by the core schema of YAML 1.2, with checks. Every YAML document of this program is read here.

PyYAML's own loaders follow YAML 1.1: `010` is eight, `1:0` is sixty, `no` is false, a date is an object that JSON
cannot hold, the last of two equal keys wins, and a few aliases can expand to gigabytes. Here numbers are those of YAML
1.2, only `true` and `false` are truth values, dates are texts, and equal keys and aliases are refused.
"""

import math
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
"""Bound of the size of a file; a configuration has some thousand bytes."""
DEEPEST = 32
"""Bound of the levels of nesting; a configuration has three."""
LONGEST_NUMBER = 40
"""Bound of the characters of a number; no key needs so many, and converting very long ones takes quadratic time."""
_CORE = "tag:yaml.org,2002:"
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""Characters that a path, an environment variable or UTF-8 cannot have."""
_NULLS = ("", "~", "null", "Null", "NULL")


def parse_yaml(content: str | bytes, where: str) -> object:
    """The document as plain values: None, bool, int, finite float, str, list, and dict with text keys.

    Args:
        content: The whole document.
        where: Path, URL or argument, for messages.

    Returns:
        The values; None for an empty document.

    Raises:
        ConfigError: The content is no YAML, or it has equal keys, aliases, numbers that are infinite or too long, other
            types, or too many levels. Names line and key.
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
    """Composes nodes with the tags of the core schema.

    Built of the same parts as yaml.SafeLoader, but without a constructor, which would make objects of YAML 1.1.
    """

    def __init__(self, content: str | bytes) -> None:
        Reader.__init__(self, content)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """Compose one node; aliases and too many levels are errors."""
        # An alias may refer to a large node again and again, and each level takes stack of the recursion.
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


# The core schema (YAML 1.2.2, section 10.3.2): tag, pattern, and the first characters by which PyYAML finds a pattern.
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+0123456789.")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    _Loader.add_implicit_resolver(_CORE + _tag, re.compile(rf"(?:{_pattern})\Z"), _first)


class _Values:
    """Converts nodes to plain values, with line and key in messages."""

    def __init__(self, where: str) -> None:
        self._where = where

    def of(self, node: Node, key: str) -> object:
        """The value of a node; `key` is its dotted key."""
        # A tag that is written out (`!!set`, `!!omap`, `!local`) makes another type of a mapping or sequence.
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
            return self._text(node, key)
        if kind in ("int", "float"):
            return self._number(node, key, kind)
        # The text is compared too: a tag that is written out (`!!bool x`) may stand before any text.
        if kind == "null" and text in _NULLS:
            return None
        if kind == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise self._wrong(node, key, f"of the type {node.tag}", "a plain value")

    def _text(self, node: ScalarNode, key: str) -> str:
        text: str = node.value
        if _UNSTORABLE.search(text):
            raise self._wrong(node, key, "text with a NUL or half a character", "text that can be stored")
        return text

    def _number(self, node: ScalarNode, key: str, kind: str) -> int | float:
        text: str = node.value
        if len(text) > LONGEST_NUMBER:
            raise self._wrong(node, key, f"a number of {len(text)} characters", f"digits, at most {LONGEST_NUMBER}")
        if "_" in text:  # Python would read 1_000, YAML 1.2 does not
            raise self._wrong(node, key, text, f"digits, at most {LONGEST_NUMBER}")
        number = _parsed_number(text, kind)
        if not math.isfinite(number):
            raise self._wrong(node, key, text, "a finite number")
        return number

    def _wrong(self, node: Node, key: str, found: str, expected: str) -> ConfigError:
        what = one_line(key) or "the document"
        line = node.start_mark.line + 1
        return ConfigError(f"{self._where}, line {line}: {what} is {one_line(found)}, expected {expected}.")


def _parsed_number(text: str, kind: str) -> int | float:
    """The number; NaN for a text that is none, such as `.inf`, `.nan`, or `x` in `!!int x`."""
    try:
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)) if kind == "int" else float(text)
    except ValueError:
        return math.nan
