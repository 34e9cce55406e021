"""Tables of the documentation that the code dictates: written by `make goldens`, compared by a test."""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterable
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


def entries() -> dict[str, tuple[tuple[str, ...], ...]]:
    """Anchors of the troubleshooting page, and for each the messages that it explains, by the words in them."""
    found = {}
    for row in (DOCS / "troubleshooting.md").read_text(encoding="utf-8").splitlines():
        if cell := re.match(r'\| <a id="([^"]+)"></a>(.*?) \| ', row):
            # `a` … `b` is one message with both, `a`, `b` are two messages.
            messages = re.split(r"(?<=`), (?=`)", cell[2])
            found[cell[1]] = tuple(tuple(re.findall(r"`([^`]+)`", message)) for message in messages)
    return found


def with_entries(source: str) -> str:
    """`indextts_job/troubleshooting.py` with the entries of the page."""

    def written(parts: Iterable[str]) -> str:
        several = list(parts)
        return f"({several[0]},)" if len(several) == 1 else f"({', '.join(several)})"

    rows = [
        f'    "{anchor}": {written(written(json.dumps(words) for words in message) for message in messages)},'
        for anchor, messages in entries().items()
    ]
    head, _, rest = source.partition("ENTRIES: ")
    kind, _, rest = rest.partition(" = {")
    return "\n".join([f"{head}ENTRIES: {kind} = {{", *rows, "}" + rest.partition("}")[2]])


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
