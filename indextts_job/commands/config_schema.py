"""A JSON Schema of run.yaml, made from the configuration: editors complete keys by it and mark what is wrong."""

import json
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, Literal

from indextts_job.bounds import Bounds
from indextts_job.commands.config_help import field_docs
from indextts_job.config import RunConfig

FILE = "run.schema.json"
"""Name of the schema beside a run.yaml."""
FIRST_LINE = f"# yaml-language-server: $schema={FILE}"
"""By which editors with the YAML language server (VS Code, Neovim, Emacs, …) find the schema."""
TITLE = "run.yaml of indextts-job"
_VARIABLE = {
    "type": "string",
    "pattern": r"\$\{[A-Za-z_]",
    "patternErrorMessage": "expected a value of the right type, or ${NAME}",  # an extension of the language server
}
"""An environment variable may stand for any value."""
_SCALARS = {bool: "boolean", int: "integer", float: "number"}


def schema() -> dict[str, Any]:
    """The schema of a whole run.yaml."""
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": TITLE, **_section(RunConfig)}


def _section(cls: Any) -> dict[str, Any]:  # noqa: ANN401  # a dataclass
    hints, docs = typing.get_type_hints(cls, include_extras=True), field_docs(cls)
    properties = {
        entry.name: _value(hints[entry.name]) | _about(docs.get(entry.name), entry.default) for entry in fields(cls)
    }
    required = [entry.name for entry in fields(cls) if entry.default is MISSING and entry.default_factory is MISSING]
    return {"type": "object", "properties": properties, "additionalProperties": False, "required": required}


def _about(doc: str | None, default: object) -> dict[str, Any]:
    """Description and default of a key, as far as it has them."""
    described: dict[str, Any] = {"description": doc} if doc else {}
    if default is not MISSING:
        described["default"] = list(default) if isinstance(default, tuple) else default
    return described


def _value(hint: Any) -> dict[str, Any]:  # noqa: ANN401  # a type
    if is_dataclass(hint):
        return _section(hint)
    if typing.get_origin(hint) is Annotated:
        return _bounded(*typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return {"anyOf": [{"enum": list(typing.get_args(hint))}, _VARIABLE]}
    if typing.get_origin(hint) is tuple:
        return _list(typing.get_args(hint)[0])
    return _scalar(hint)


def _list(entry: Any) -> dict[str, Any]:  # noqa: ANN401  # a type
    several = {"type": "array", "items": _value(entry)}
    # One text stands for a list with one entry.
    return {"anyOf": [several, {"type": "string"}]} if entry is str else several


def _bounded(hint: Any, *metadata: object) -> dict[str, Any]:  # noqa: ANN401  # a type
    found = _scalar(hint)
    for bounds in metadata:
        if isinstance(bounds, Bounds):
            found |= {"minimum": bounds.least, "exclusiveMaximum" if bounds.below else "maximum": bounds.most}
    return found


def _scalar(hint: Any) -> dict[str, Any]:  # noqa: ANN401  # a type
    if hint is str:
        return {"type": "string"}
    # Bounds are for numbers and the pattern is for texts, so that neither says anything about the other.
    return {**_VARIABLE, "type": [_SCALARS[hint], "string"]}


def schema_text() -> str:
    """The schema as a file."""
    return json.dumps(schema(), indent=1) + "\n"
