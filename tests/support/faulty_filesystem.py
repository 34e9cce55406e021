"""A memory file system whose n-th write, read or deletion fails, for whole attempts."""

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class FaultyFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """Asks `fault(verb, path)` before every operation; it may raise."""

    fault: ClassVar[Callable[[str, str], None]] = staticmethod(lambda _verb, _path: None)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **named: Any) -> None:
        type(self).fault("write", path)
        super().pipe_file(path, value, mode=mode, **named)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **named: Any) -> bytes:
        type(self).fault("read", path)
        return bytes(super().cat_file(path, start=start, end=end, **named))

    def rm_file(self, path: str) -> None:
        type(self).fault("delete", path)
        super().rm_file(path)


# Shares its files with the class that it replaces, and behaves like it until a test sets a fault.
fsspec.register_implementation("memory", FaultyFileSystem, clobber=True)
_numbers = itertools.count()


def fresh_run() -> str:
    """A run of its own on the faulty file system."""
    return f"memory://faulty-{next(_numbers)}"
