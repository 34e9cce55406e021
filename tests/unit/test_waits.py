"""Nothing waits without an end: a stop that comes meanwhile would cost a checkpoint.

A wait either has a bound, after which the code looks for a stop again, or is that of the relay, which passes stops on.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.warm_parent import REPOSITORY

WAITS = ("wait", "join", "get", "result", "acquire", "communicate")
"""Methods that wait for ever when they are called without arguments."""
FILES = sorted(
    [
        *(REPOSITORY / "launch").rglob("*.py"),
        *(REPOSITORY / "indextts_job/commands").glob("*.py"),
        *(REPOSITORY / "indextts_job/preemption").glob("*.py"),
        REPOSITORY / "indextts_job/training/processes.py",
    ]
)


def endless(source: str) -> Iterator[str]:
    """Calls that wait without a bound, by line."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(attr=name), args=[], keywords=[]) if name in WAITS:
                yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_wait_is_without_a_bound(path: Path) -> None:
    assert list(endless(path.read_text(encoding="utf-8"))) == []


def test_an_endless_wait_would_be_seen() -> None:
    assert list(endless("import x\nx.thread.join()\nx.queue.get(timeout=1)\n', '.join(x)\n")) == [
        "line 2: x.thread.join()"
    ]
