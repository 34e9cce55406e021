"""Run work in a daemon thread, which ends with the process."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

GIVES_WAY = 10
"""Niceness of work that nothing waits for: about a tenth of a processor that somebody else wants."""


def begin(work: Callable[[], T], name: str) -> Future[T]:
    """Run a function in a thread of its own.

    Args:
        work: The function; its exception is raised by the future's `result`.
        name: Name of the thread.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  # passed on by the future
            future.set_exception(error)

    # Not an executor: the interpreter waits for its threads at exit, also for one in a read that hangs.
    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def give_way() -> None:
    """Lower the priority of the calling thread: for work that nothing waits for, beside work that somebody does."""
    # Linux has priorities of threads; elsewhere this would be that of the process.
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), GIVES_WAY)
