"""How long an operation on remote storage is tried again: pauses, deadlines, and a limit for the whole process."""

import contextlib
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 15.0


def backoff_s(number: int, first_s: float, longest_s: float, chance: random.Random) -> float:
    """The pause before a further try: exponential with jitter, so that many nodes do not hit a sick store in step.

    At least half of each step is waited (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015).

    Args:
        number: Of the pause, from 1.
        first_s: Upper bound of the first pause; each further one is twice as long.
        longest_s: Upper bound of every pause.
        chance: Source of the jitter.
    """
    # A float power overflows at 1024, long after the bound is reached.
    return min(first_s * 2.0 ** min(number - 1, 100), longest_s) * chance.uniform(0.5, 1.0)


def delays(limit_s: float, chance: random.Random) -> Iterator[float]:
    """Seconds to wait before each further try, until their sum would pass the limit.

    Args:
        limit_s: Bound of the sum.
        chance: Source of the jitter.
    """
    waited_s = 0.0
    for number in itertools.count(1):
        if waited_s >= limit_s:
            return
        delay_s = min(backoff_s(number, FIRST_DELAY_S, LONGEST_DELAY_S, chance), limit_s - waited_s)
        yield delay_s
        waited_s += delay_s


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
