"""Prints the configuration as YAML: every key with its default and the docstring of its field."""

import ast
import inspect
import itertools
import math
import textwrap
import typing
from dataclasses import fields, is_dataclass
from typing import Any

import yaml

from indextts_job.config import RunConfig

WIDTH = 110


def documented_defaults(instance: object | None = None, indent: str = "") -> str:
    """A YAML document of all keys with their defaults, and their docstrings as comments.

    Args:
        instance: A configuration or a section of one; the defaults if not given.
        indent: Indentation of every line.
    """
    section: Any = RunConfig() if instance is None else instance
    docs = field_docs(type(section))
    hints = typing.get_type_hints(type(section))
    lines = []
    for entry in fields(section):
        value = getattr(section, entry.name)
        if is_dataclass(hints[entry.name]):
            lines.append(f"\n{indent}{entry.name}:  # {inspect.getdoc(type(value))}\n")
            lines.append(documented_defaults(value, indent + "  "))
            continue
        wrapped = textwrap.wrap(docs.get(entry.name, ""), WIDTH - len(indent))
        lines += [f"{indent}# {line}\n" for line in wrapped]
        # YAML would write a tuple with a Python tag, and a list over several lines.
        if isinstance(value, tuple):
            text = f"{entry.name}: {yaml.safe_dump(list(value), default_flow_style=True, width=math.inf)}"
        else:
            text = yaml.safe_dump({entry.name: value}, default_flow_style=False)
        lines.append(f"{indent}{text}")
    return "".join(lines)


def field_docs(cls: type) -> dict[str, str]:
    """Docstrings of the fields of a dataclass, by name."""
    # Python keeps no docstrings of attributes at run time, so they are read from the source.
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    body = typing.cast("ast.ClassDef", tree).body
    docs = {}
    for statement, following in itertools.pairwise(body):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs
