"""Tables of the documentation that the code dictates: written by `make goldens`, compared by a test."""

import ast
import inspect
import re
import textwrap
from dataclasses import fields
from pathlib import Path

from indextts_job.legacy import flags
from indextts_job.report import events

DOCS = Path(__file__).resolve().parents[2] / "docs"
TABLES = {"migration.md": "flags", "events.md": "events"}


def flags_table() -> str:
    """Flags of the old trainer and the keys that they set."""
    rows = [f"| `{flag.name}` | `{flag.key}` |" for flag in flags._FLAGS]
    more = [
        "| `--train-manifest`, repeatable | `data.train_manifests` |",
        "| `--val-manifest`, repeatable | `data.validation_manifests` |",
        "| `INDEXTTS_RUN_NAME` in the environment | `report.run_name` |",
    ]
    return "\n".join(["| flag | key |", "| --- | --- |", *rows, *more])


def events_table() -> str:
    """Every event that journals hold, with its fields."""
    rows = ["| event | when | fields |", "| --- | --- | --- |"]
    left_out = (events.Event, events.StepDone, events.ValidationProgress)
    for kind in vars(events).values():
        if inspect.isclass(kind) and issubclass(kind, events.Event) and kind not in left_out:
            meanings = _meanings(kind)
            names = [field.name for field in fields(kind) if field.name != "step"]
            told = "; ".join(f"`{name}`{': ' + meanings[name] if name in meanings else ''}" for name in names)
            rows.append(f"| `{kind.__name__}` | {_sentence(kind.__doc__ or '')} | {told} |")
    return "\n".join(rows)


def with_table(text: str, marker: str) -> str:
    """A document with its table as it should be."""
    table = flags_table() if marker == "flags" else events_table()
    pattern = rf"(<!-- {marker} -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda found: f"{found[1]}{table}\n{found[2]}", text, flags=re.DOTALL)


def _meanings(kind: type) -> dict[str, str]:
    """Docstrings behind the fields of a class."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = _sentence(str(after.value.value))
    return found


def _sentence(text: str) -> str:
    return " ".join(text.split()).rstrip(".").replace("|", "/")
