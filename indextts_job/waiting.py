"""Every wait of the product: bounded, and open-eyed for a stop request.

Nothing else in the package joins a thread, takes from a queue, asks a future for its result or sleeps: a wait without
a bound hides a stop request until the kill, and with it the steps since the last commit.
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
"""How often a wait looks for a stop request; what it waits for wakes it at once."""
Stopped = Callable[[], object]
"""Something true once the wait should end."""


def never() -> bool:
    """For waits that only what they wait for can end, in threads that end with the process."""
    return False


def pause(seconds: float, stopped: Stopped = never) -> bool:
    """Sleep.

    Args:
        seconds: How long.
        stopped: Ends it early.

    Returns:
        Whether it was ended early.
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
    """The next item of a queue; None when the wait was ended before there was one.

    Args:
        source: Items that are not None.
        stopped: Ends the wait. What is there already is handed over all the same.
        after_s: So many seconds of waiting are nothing to speak of.
        tell: Called once when it takes longer.
    """
    since_s = time.monotonic()
    while True:
        with contextlib.suppress(queue.Empty):
            return source.get(timeout=LOOK_S)
        if stopped():
            return None
        if tell and time.monotonic() - since_s >= after_s:
            tell()
            tell = None


def hand_over(target: "queue.Queue[T]", item: T, stopped: Stopped) -> bool:
    """Put an item into a queue of bounded size; False when the wait was ended before there was room."""
    while not stopped():
        with contextlib.suppress(queue.Full):
            target.put(item, timeout=LOOK_S)
            return True
    return False


def joined(thread: threading.Thread, wait_s: float, stopped: Stopped = never) -> bool:
    """Whether a thread has ended.

    Args:
        thread: It.
        wait_s: For so long at most; infinity waits for its end.
        stopped: Ends the wait early.
    """
    until_s = time.monotonic() + wait_s
    while True:
        thread.join(max(0.0, min(LOOK_S, until_s - time.monotonic())))
        if not thread.is_alive():
            return True
        if stopped() or time.monotonic() >= until_s:
            return False


def result(future: Future[T], check: Callable[[], object] = never) -> T:
    """What a future gives, or raises.

    Args:
        future: Of work in a thread.
        check: Called again and again meanwhile; raises to end the wait.
    """
    while True:
        with contextlib.suppress(TimeoutError):
            return future.result(timeout=LOOK_S)
        if future.done():  # the work itself raised a TimeoutError
            return future.result(timeout=0)
        check()
