"""Waits that end when a stop is requested: sleep, queues, threads, futures.

Nothing else in this package waits (`tests/unit/test_waits.py`). A wait without a bound would delay a stop request until
the kill, and the steps since the last commit would be lost.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
LOOK_S = 0.05
"""How often a wait checks for a stop request. The event that it waits for ends it at once."""
Stopped = Callable[[], object]
"""Returns something true when the wait should end."""


def never() -> bool:
    """A `Stopped` that never ends a wait; for threads that end with the process."""
    return False


def pause(seconds: float, stopped: Stopped = never) -> bool:
    """Sleep for some seconds, or until `stopped` is true.

    Returns:
        Whether `stopped` ended the sleep.
    """
    until_s = time.monotonic() + seconds
    while not stopped():
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            return False
        time.sleep(min(left_s, LOOK_S))
    return True


def take(
    source: "queue.Queue[T]", stopped: Stopped, after_s: float = 0.0, tell: Callable[[], None] | None = None
) -> T | None:
    """The next item of a queue; None if `stopped` ended the wait.

    Args:
        source: A queue of items that are not None.
        stopped: Ends the wait.
        after_s: Seconds of waiting after which `tell` is called.
        tell: Called once when the wait is long.
    """
    since_s = time.monotonic()
    while True:
        # The queue comes before the stop: an item that is there already is used.
        with contextlib.suppress(queue.Empty):
            return source.get(timeout=LOOK_S)
        if stopped():
            return None
        if tell and time.monotonic() - since_s >= after_s:
            tell()
            tell = None


def hand_over(target: "queue.Queue[T]", item: T, stopped: Stopped) -> bool:
    """Put an item into a bounded queue; False if `stopped` ended the wait for room."""
    while not stopped():
        with contextlib.suppress(queue.Full):
            target.put(item, timeout=LOOK_S)
            return True
    return False


def joined(thread: threading.Thread, wait_s: float, stopped: Stopped = never) -> bool:
    """Wait for the end of a thread, for at most `wait_s` seconds (may be infinite) or until `stopped` is true.

    Returns:
        Whether the thread has ended.
    """
    until_s = time.monotonic() + wait_s
    while True:
        thread.join(max(0.0, min(LOOK_S, until_s - time.monotonic())))
        if not thread.is_alive():
            return True
        if stopped() or time.monotonic() >= until_s:
            return False


def result(future: Future[T], check: Callable[[], object] = never) -> T:
    """The result of a future, or the exception of its work.

    Args:
        future: The future of work in a thread.
        check: Called repeatedly during the wait; an exception from it ends the wait.
    """
    while True:
        with contextlib.suppress(TimeoutError):
            return future.result(timeout=LOOK_S)
        # Since Python 3.11 the future's own timeout and one of the work are the same class.
        if future.done():
            return future.result(timeout=0)
        check()


def settled(future: Future[T], limit_s: float, stopped: Stopped = never) -> bool:
    """Wait for the end of a future's work, for a while or until `stopped` is true; whether it has ended."""
    until_s = time.monotonic() + limit_s
    while not future.done() and not stopped() and time.monotonic() < until_s:
        with contextlib.suppress(Exception):
            future.result(timeout=min(LOOK_S, max(0.0, until_s - time.monotonic())))
    return future.done()
