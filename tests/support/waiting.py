"""Waiting for what tells nobody when it happens: a scheduler, a container, another process."""

import time
from collections.abc import Callable
from pathlib import Path


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 120.0) -> None:
    """Look until something is so. Asking is the only way.

    Raises:
        AssertionError: It did not become so.
    """
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.1)


def is_gone(pid: int) -> bool:
    """Whether a process has ended. One that nobody has waited for yet counts as ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in {"Z", "X"}
