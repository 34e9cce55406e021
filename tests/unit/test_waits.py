"""Nothing waits without an end: a stop that comes meanwhile would cost a checkpoint.

A wait either has a bound, after which the code looks for a stop again, or is in the module that knows stops.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.warm_parent import REPOSITORY

CONTEXT_VARIABLES = ("_most_s", "_deadline_at_s")
"""Their `get` waits for nothing."""
WAITS = ("wait", "join", "get", "result", "acquire", "communicate")
"""Methods that wait for ever when they are called without arguments."""
KNOWS_STOPS = ("indextts_job/waiting.py", "indextts_job/preemption/exit_guard.py")
FILES = sorted(
    path
    for package in ("launch", "indextts_job")
    for path in (REPOSITORY / package).rglob("*.py")
    if str(path.relative_to(REPOSITORY)) not in KNOWS_STOPS
)


def endless(source: str) -> Iterator[str]:
    """Calls that wait without a bound, and sleeps that see no stop, by line."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="time"), attr="sleep"):
                yield f"line {node.lineno}: {ast.unparse(node)}"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="select"), attr="select"), args=[_, _, _]):
                yield f"line {node.lineno}: {ast.unparse(node)}"
            case ast.Call(func=ast.Attribute(attr=name, value=value), args=[], keywords=[]) if name in WAITS and (
                ast.unparse(value) not in CONTEXT_VARIABLES
            ):
                yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_wait_is_without_a_bound(path: Path) -> None:
    assert list(endless(path.read_text(encoding="utf-8"))) == []


def test_an_endless_wait_would_be_seen() -> None:
    source = "import x\nx.thread.join()\nx.queue.get(timeout=1)\n', '.join(x)\ntime.sleep(1)\nselect.select(a, b, c)\n"
    assert {found.partition(":")[0] for found in endless(source)} == {"line 2", "line 5", "line 6"}
