"""Ends the process after a stop request when the main thread cannot: it waits for a read that hangs, say.

Python runs a signal handler in the main thread, and only between two of its instructions. While that thread is inside
a read of a file system that does not answer, or joins a group of ranks that never comes, no handler runs and no wait
is interrupted. The C level writes the signal's number into a descriptor all the same, and a thread reads it here.

Three phases have three bounds. While the attempt starts there is nothing to save. While it trains, everything up to
the deadline belongs to the last save. Once it leaves, everything is committed.
"""

import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from indextts_job.errors import EXIT_INTERRUPTED, EXIT_STOPPED
from indextts_job.preemption.deadline import StopRequest
from indextts_job.preemption.signals import StopSignals

LEAVE_S = 2.0
"""The main thread has so long to leave by itself where there is nothing more to save."""
BEFORE_DEADLINE_S = 0.3
"""So long before the deadline the process ends: 75 asks for another start, the kill at the deadline does not."""


def end_process(code: int) -> None:
    """End without the interpreter's shutdown, after flushing what was printed.

    At shutdown the interpreter waits for threads, and libraries destroy threads of theirs that still run, which ends
    the process with 134. Everything that has to be durable is durable before this is called.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that has gone, or a full disk: there is nobody left to tell.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


@dataclass(frozen=True, slots=True)
class _Leaving:
    """The attempt is over."""

    code: int
    since_s: float


class ExitGuard:
    """Knows in which phase the attempt is, and ends the process when its bound has passed."""

    def __init__(
        self,
        stop: StopSignals,
        end: Callable[[int], None] = end_process,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A guard that does nothing until `watch`.

        Args:
            stop: The stop requests of the process.
            end: Ends the process with an exit code.
            clock: The monotonic clock that requests are measured by.
        """
        self._stop = stop
        self._end = end
        self._clock = clock
        self._training = False
        self._leaving: _Leaving | None = None
        self._dismissed = False

    def watch(self) -> None:
        """Begin to guard, in a thread of its own. The main thread calls it, after the handlers are installed."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        self._stop.wake = writing
        threading.Thread(target=self._run, args=(reading,), name="exit guard", daemon=True).start()

    def dismiss(self) -> None:
        """Stop guarding: somebody else answers for the end of this process."""
        signal.set_wakeup_fd(-1)
        self._stop.wake = None
        self._dismissed = True

    def leaves(self, code: int) -> None:
        """Everything is committed; what is left may take `LEAVE_S` once a stop is requested.

        Args:
            code: The exit code of the attempt.
        """
        self._leaving = _Leaving(code, self._clock())

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside there is something to save."""
        self._training = True
        try:
            yield
        finally:
            self._training = False

    def bound_s(self, request: StopRequest) -> float:
        """Instant at which the process ends if the main thread does not end it before.

        Args:
            request: The stop request.
        """
        soon_s = request.requested_at_s + LEAVE_S
        if self._leaving:
            return max(soon_s, self._leaving.since_s + LEAVE_S)
        if self._training:
            return max(soon_s, request.deadline_at_s - BEFORE_DEADLINE_S)
        return soon_s

    def _run(self, reading: int) -> None:
        interrupts = 0
        while True:
            if self._dismissed:
                return
            request = self._stop()
            left_s = self.bound_s(request) - self._clock() if request else math.inf
            if request and left_s <= 0:
                self._give_up(request)
                return
            # A change of phase makes the bound later or sooner, so it is looked at again now and then.
            timeout_s = None if request is None else min(max(left_s, 0.0), 0.2)
            if select.select([reading], [], [], timeout_s)[0]:
                for number in os.read(reading, 64):
                    if number:
                        self._stop.record(number, self._clock())
                    interrupts += number == signal.SIGINT
                # The first handler puts the default action back, which ends the process; but it has not run.
                if interrupts > 1:
                    self._end(EXIT_INTERRUPTED)
                    return

    def _give_up(self, request: StopRequest) -> None:
        code = EXIT_STOPPED
        if self._leaving:
            code = self._leaving.code
        elif self._training:
            _say(f"stopped: the time after {request.reason} is over, and the last save was not done in it. The last "
                 "committed checkpoint stands; the next attempt goes on from there.")  # fmt: skip
        else:
            _say(f"stopped: {request.reason} before training began: nothing to save, the last checkpoint stands.")
        self._end(code)


def _say(text: str) -> None:
    # The main thread may hold the lock of sys.stderr for as long as its write hangs.
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
