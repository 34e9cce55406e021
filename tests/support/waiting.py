"""Waiting for what tells nobody when it happens: a scheduler, a container, another process."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 120.0) -> None:
    """Look until something is so. Asking is the only way.

    Raises:
        AssertionError: It did not become so.
    """
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.1)
