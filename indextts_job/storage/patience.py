"""How long a person is kept waiting: a bound of every retry of this process, below the limit of each operation."""

import math
from contextvars import ContextVar

_most_s: ContextVar[float] = ContextVar("most_patience_s", default=math.inf)


def limit_patience(seconds: float) -> None:
    """Try no operation of the calling thread again for longer than this, from here on."""
    _most_s.set(seconds)


def within_patience(limit_s: float) -> float:
    """The limit of an operation, or the patience of the process where that is shorter."""
    return min(limit_s, _most_s.get())
