"""Retries of remote operations: pauses, deadlines, and a limit for the calling thread."""

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
    """The pause before a retry: exponential with jitter, so that many nodes do not retry at the same moments.

    At least half of each step is waited (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015).

    Args:
        number: Number of the pause, from 1.
        first_s: Upper bound of the first pause; each further one is twice as long.
        longest_s: Upper bound of every pause.
        chance: Source of the jitter.
    """
    # A float power overflows at 1024, long after the bound is reached.
    return min(first_s * 2.0 ** min(number - 1, 100), longest_s) * chance.uniform(0.5, 1.0)


def delays(limit_s: float, chance: random.Random) -> Iterator[float]:
    """Seconds to wait before each retry; their sum is at most the limit."""
    waited_s = 0.0
    for number in itertools.count(1):
        if waited_s >= limit_s:
            return
        delay_s = min(backoff_s(number, FIRST_DELAY_S, LONGEST_DELAY_S, chance), limit_s - waited_s)
        yield delay_s
        waited_s += delay_s


_deadline_at_s: ContextVar[float] = ContextVar("deadline_at_s", default=math.inf)
"""End of the operation that this thread is in. A context variable, because the calls are made several layers below
`patiently`, through fsspec, which passes no deadline on."""


@contextlib.contextmanager
def deadline(at_s: float) -> Iterator[None]:
    """Set the deadline of the operation whose calls are made inside.

    Args:
        at_s: Instant of the monotonic clock.
    """
    # Reset to the one before instead of to infinity: operations nest.
    token = _deadline_at_s.set(at_s)
    try:
        yield
    finally:
        _deadline_at_s.reset(token)


def seconds_left(clock: Callable[[], float] = time.monotonic) -> float:
    """Seconds until the deadline of the operation that the caller is part of; infinite without one, negative after."""
    return _deadline_at_s.get() - clock()


_most_s: ContextVar[float] = ContextVar("most_patience_s", default=math.inf)


def limit_patience(seconds: float) -> None:
    """Bound the retries of each further operation in the calling thread.

    Commands use it on a terminal, where two minutes of retries for a mistyped bucket would be too long.
    """
    _most_s.set(seconds)


def within_patience(limit_s: float) -> float:
    """The limit of an operation, or that of `limit_patience` where it is shorter."""
    return min(limit_s, _most_s.get())
