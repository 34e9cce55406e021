"""Unit tests that need no torch, found by following the imports of their files: what `make quick` runs.

python -m tests.support.pure
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def pure_tests() -> list[Path]:
    """Files of tests/unit that import torch neither themselves nor through another file of this repository."""
    paths = sorted((REPOSITORY / "tests/unit").glob("test_*.py"))
    return [path for path in paths if "torch" not in reachable(path)]


def reachable(path: Path) -> set[str]:
    """Names of all modules that are imported when a file is, external ones by their first part."""
    seen: set[str] = set()
    waiting = [path]
    while waiting:
        for name in imported(waiting.pop()):
            if name not in seen:
                seen.add(name)
                waiting += [source] if (source := source_of(name)) else []
    return {name if source_of(name) else name.partition(".")[0] for name in seen}


@cache
def imported(path: Path) -> frozenset[str]:
    """What a file imports at its top level; imports inside functions come later, if they come."""
    return frozenset(name for statement in ast.parse(path.read_text("utf-8")).body for name in names(statement))


def names(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
    elif isinstance(statement, ast.ImportFrom) and statement.module:
        yield statement.module
        yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def source_of(module: str) -> Path | None:
    path = REPOSITORY / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


if __name__ == "__main__":
    print(*(path.relative_to(REPOSITORY) for path in pure_tests()))  # noqa: T201
