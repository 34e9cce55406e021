"""A thread that ends the process after a stop request if the main thread cannot, for example in a read that hangs.

Python runs signal handlers in the main thread, and only between two of its bytecode instructions. While that thread is
in a read of a file system that does not answer, or waits for ranks that never join, no handler runs and no wait is
interrupted. Python's C code still writes the number of the signal into the wakeup descriptor (`signal.set_wakeup_fd`),
and the guard's thread reads it from there.

The bound depends on the phase of the attempt. While it starts, there is nothing to save, and the process ends soon.
While it trains, the time up to the deadline belongs to the last save. Once it leaves, everything is committed.
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
"""Time that the main thread has to leave by itself when there is nothing more to save."""
BEFORE_DEADLINE_S = 0.3
"""The process ends this long before the deadline: exit code 75 requests another start, a kill at the deadline does not
everywhere."""
POLL_S = 0.2
"""How often the bound is computed again after a request: a change of phase moves it."""


def end_process(code: int) -> None:
    """End the process without the interpreter's shutdown; the standard streams are flushed.

    Everything that has to be durable must be durable before the call.
    """
    # The shutdown would wait for threads that hang. It also destroys libraries' threads that still run, which can end
    # the process with SIGABRT (134) instead of its exit code.
    for stream in (sys.stdout, sys.stderr):
        # A closed terminal or a full disk must not change the exit code.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


@dataclass(frozen=True, slots=True)
class _Leaving:
    """The attempt is over: its exit code, and the instant since which it is over."""

    code: int
    since_s: float


class ExitGuard:
    """Follows the phase of the attempt, and ends the process when the bound of that phase has passed."""

    def __init__(
        self,
        stop: StopSignals,
        end: Callable[[int], None] = end_process,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a guard that does nothing before `watch`.

        Args:
            stop: The stop requests of the process.
            end: Ends the process with an exit code.
            clock: The monotonic clock of the requests.
        """
        self._stop = stop
        self._end = end
        self._clock = clock
        self._working = False
        self._cut_off = ""
        self._leaving: _Leaving | None = None
        self._dismissed = False

    def watch(self) -> None:
        """Start the guard's thread. Only the main thread may call this, after the signal handlers are installed."""
        reading, writing = os.pipe()
        # Python's C handler writes into the pipe and must not wait when it is full.
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        self._stop.wake = writing
        threading.Thread(target=self._run, args=(reading,), name="exit guard", daemon=True).start()

    def dismiss(self) -> None:
        """Stop guarding, for a process whose end is handled elsewhere."""
        signal.set_wakeup_fd(-1)
        self._stop.wake = None
        self._dismissed = True

    def leaves(self, code: int) -> None:
        """Begin the last phase: everything is committed, and after a stop request the rest may take `LEAVE_S`.

        Args:
            code: Exit code of the attempt.
        """
        self._leaving = _Leaving(code, self._clock())

    @contextmanager
    def training(self) -> Iterator[None]:
        """The phase of a training in which there is something to save."""
        stands = "The last committed checkpoint stands; the next attempt goes on from there."
        with self.working(f"the last save was not done in it. {stands}"):
            yield

    @contextmanager
    def working(self, cut_off: str) -> Iterator[None]:
        """A phase in which the time up to the deadline is needed to end well.

        Args:
            cut_off: What it means when that time was too short, as the end of a sentence about the time that is over.
        """
        self._working, self._cut_off = True, cut_off
        try:
            yield
        finally:
            self._working = False

    def bound_s(self, request: StopRequest) -> float:
        """The instant at which the guard ends the process, if the main thread has not ended it before."""
        soon_s = request.requested_at_s + LEAVE_S
        if self._leaving:
            return max(soon_s, self._leaving.since_s + LEAVE_S)
        if self._working:
            return max(soon_s, request.deadline_at_s - BEFORE_DEADLINE_S)
        return soon_s

    def _run(self, reading: int) -> None:
        interrupts = 0
        while not self._dismissed:
            request = self._stop()
            left_s = self.bound_s(request) - self._clock() if request else math.inf
            if request and left_s <= 0:
                self._give_up(request)
                return
            timeout_s = min(left_s, POLL_S) if request else None
            if select.select([reading], [], [], timeout_s)[0]:
                interrupts += self._record_signals(os.read(reading, 64))
            # After the first Ctrl+C a handler restores the default action, so that a second one ends the process. If
            # the second one comes here, the main thread has not run that handler.
            if interrupts > 1:
                self._end(EXIT_INTERRUPTED)
                return

    def _record_signals(self, numbers: bytes) -> int:
        """Record signals; returns how many of them are Ctrl+C."""
        for number in filter(None, numbers):  # 0 only wakes this thread, for a notice of the cloud
            self._stop.record(number, self._clock())
        return numbers.count(signal.SIGINT)

    def _give_up(self, request: StopRequest) -> None:
        code = EXIT_STOPPED
        if self._leaving:
            code = self._leaving.code
        elif self._working:
            _say(f"stopped: the time after {request.reason} is over, and {self._cut_off}")
        else:
            _say(f"stopped: {request.reason} before training began: nothing to save, the last checkpoint stands.")
        self._end(code)


def _say(text: str) -> None:
    # Not through sys.stderr: the main thread may hold its lock in a write that hangs.
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
