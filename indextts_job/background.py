"""Work that goes on beside the main thread and ends with the process."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def begin(work: Callable[[], T], name: str) -> Future[T]:
    """Do something in a thread of its own.

    Args:
        work: What; its error is raised to whoever asks for the result, if anybody does.
        name: Of the thread.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  # see `work`
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
