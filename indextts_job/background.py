"""Run work in a daemon thread, which ends with the process."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


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
