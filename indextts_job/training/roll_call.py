"""Finds out which rank was lost. A failed collective tells each rank only that one of its connections has closed.

Every rank looks for a question in the store in which the ranks have met, and answers it, from a thread: the training
may wait in a collective for a rank that asks. A rank that does not answer in time is lost. The first rank to find out
leaves its finding in the store, because it ends, and is no rank that was lost then.
"""

import contextlib
from collections.abc import Sequence
from threading import Event
from typing import Protocol

from indextts_job.background import begin
from indextts_job.waiting import pause

LOOK_S = 0.5
"""Interval at which the ranks look for a question."""
ANSWER_S = 3.0
"""Time in which a rank that is still there has answered, on a machine that is busy too."""
CLOSED_S = 5.0
"""Limit of the wait for the thread: longer than it looks at the store, unless the store hangs."""
_ASKED, _HERE, _LOST = "roll call", "here", "lost"


class Store(Protocol):
    """The part of `torch.distributed.Store` that is used. Without a connection its methods raise a RuntimeError."""

    def set(self, key: str, value: str, /) -> None:
        """Set a value."""

    def get(self, key: str, /) -> bytes:
        """The value of a key that is there."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all keys are there."""


class RollCall:
    """Answers for this rank while it is open, and asks the others."""

    def __init__(self, store: Store, rank: int, world_size: int, look_s: float = LOOK_S) -> None:
        self._store = store
        self._rank = rank
        self._others = [other for other in range(world_size) if other != rank]
        self._look_s = look_s
        self._closed = Event()
        self._found: Sequence[int] = []
        self._answering = begin(self._answer, "roll call")

    def close(self) -> None:
        """End the thread; this rank is not there any more."""
        self._closed.set()
        # Waited for: a thread that comes back from the store when the interpreter ends would abort the process.
        with contextlib.suppress(TimeoutError):
            self._answering.result(CLOSED_S)

    def missing(self) -> Sequence[int]:
        """The ranks that were lost; none when that cannot be known, as when they only do not communicate."""
        if self._found:
            return self._found
        try:
            self._store.set(_ASKED, "")
            pause(ANSWER_S, self._all_here)
            found = [other for other in self._others if not self._store.check([f"{_HERE} {other}"])]
            if self._store.check([_LOST]):
                return _parsed(self._store.get(_LOST))
            # A rank that has failed although all are there ends too, and is then the one that the others have lost.
            self._store.set(_LOST, " ".join(map(str, found or [self._rank])))
        except RuntimeError:
            # The store is in the process of rank 0, or beyond a network that is broken.
            return self._found or ([] if self._rank == 0 else [0])
        # Rank 0 ends with the store: the others need time to read what was found.
        pause(2 * self._look_s)
        return found

    def _all_here(self) -> bool:
        return self._store.check([f"{_HERE} {other}" for other in self._others])

    def _answer(self) -> None:
        answered = False
        while not pause(self._look_s, self._closed.is_set):
            try:
                if not answered and self._store.check([_ASKED]):
                    self._store.set(f"{_HERE} {self._rank}", "")
                    answered = True
                if answered and self._store.check([_LOST]):
                    self._found = _parsed(self._store.get(_LOST))
                    return
            except RuntimeError:
                return


def _parsed(value: bytes) -> list[int]:
    return [int(rank) for rank in value.split()]
