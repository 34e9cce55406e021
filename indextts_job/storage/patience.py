"""How long an operation on remote storage is tried again: pauses, deadlines, and a limit for the whole process."""

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 15.0


def delays(limit_s: float, chance: random.Random) -> Iterator[float]:
    """Seconds to wait before each further try, until their sum would pass the limit.

    Exponential with full jitter, so that many nodes do not hit a sick store in step (Brooker, "Exponential Backoff
    And Jitter", AWS Architecture Blog 2015); at least half of each step is waited.

    Args:
        limit_s: Bound of the sum.
        chance: Source of the jitter.
    """
    waited_s, step_s = 0.0, FIRST_DELAY_S
    while waited_s < limit_s:
        delay_s = min(step_s * chance.uniform(0.5, 1.0), limit_s - waited_s)
        yield delay_s
        waited_s += delay_s
        step_s = min(2 * step_s, LONGEST_DELAY_S)


_deadline_at_s: ContextVar[float] = ContextVar("deadline_at_s", default=math.inf)
"""Of the operation that this thread is in. Calls are made several layers below the place that knows the patience."""


@contextlib.contextmanager
def deadline(at_s: float) -> Iterator[None]:
    """Tell the calls inside when the patience with their operation ends.

    Args:
        at_s: Instant of the monotonic clock.
    """
    token = _deadline_at_s.set(at_s)
    try:
        yield
    finally:
        _deadline_at_s.reset(token)


def seconds_left(clock: Callable[[], float] = time.monotonic) -> float:
    """Until the deadline of the operation that the caller is part of; infinite without one, negative behind it."""
    return _deadline_at_s.get() - clock()


_most_s: ContextVar[float] = ContextVar("most_patience_s", default=math.inf)


def limit_patience(seconds: float) -> None:
    """Try no operation of the calling thread again for longer than this, from here on."""
    _most_s.set(seconds)


def within_patience(limit_s: float) -> float:
    """The limit of an operation, or the patience of the process where that is shorter."""
    return min(limit_s, _most_s.get())
