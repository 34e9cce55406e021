"""The stop requests of this process, from signals and from notices of the cloud.

A signal handler stores the number and the instant, and nothing else. This module imports no torch, so that the handlers
are installed before torch is imported: a SIGTERM without a handler ends the process with nothing committed.
"""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from types import FrameType

from indextts_job.preemption.deadline import StopRequest

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR2", "SIGHUP") if hasattr(signal, name)
)
"""Signals that request a stop: SIGTERM from schedulers, SIGINT from a person, SIGUSR2 before a time limit (Windows has
none), SIGHUP at the end of a terminal or a login. SIGUSR1 is left to NCCL."""


class StopSignals:
    """Holds the stop requests of the process; calling it gives the present one.

    A second SIGINT ends the process at once. The last checkpoint stays intact, because checkpoints become visible in
    one operation.
    """

    def __init__(self) -> None:
        self.grace_s = 30.0
        self.risk = ""
        """Why the risk to lose the machine has risen; empty while the cloud reports no risk."""
        self.wake: int | None = None
        """A descriptor that gets a byte with every notice, for a thread that waits for requests."""
        self._received: dict[signal.Signals, float] = {}
        """The instant at which each signal came first."""
        self._noticed: StopRequest | None = None

    def install(self, early: Iterable[tuple[int, float]] = ()) -> None:
        """Install the signal handlers; in another thread than the main thread none can be installed.

        Args:
            early: Signals that other handlers have received before, with the instants of the monotonic clock.
        """
        if threading.current_thread() is threading.main_thread():
            # A signal that the process was started with as ignored stays ignored: nohup does that with SIGHUP, and a
            # shell with SIGINT for a background command.
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, self._store)
        # After the handlers: the caller's list may grow until they are in place, and no signal must be lost.
        for number, instant in early:
            self.record(number, instant)

    def record(self, number: int, instant: float) -> None:
        """Store a signal. Safe in a signal handler and in any thread.

        Args:
            number: Number of the signal.
            instant: Instant of the monotonic clock.
        """
        # The first one of each number counts: repetitions must not move the deadline.
        self._received.setdefault(signal.Signals(number), instant)

    def _store(self, number: int, _frame: FrameType | None) -> None:
        self.record(number, time.monotonic())
        if number == signal.SIGINT:
            # A second Ctrl+C then ends the process without any of our code.
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def notice(self, reason: str, seconds_left: float) -> None:
        """Store that the cloud will take the machine away. May be called from any thread."""
        now_s = time.monotonic()
        self._noticed = StopRequest(reason, now_s, now_s + seconds_left)
        if self.wake is not None:
            with contextlib.suppress(OSError):  # the pipe is full, and its reader is woken by what is in it
                os.write(self.wake, b"\0")

    def __call__(self) -> StopRequest | None:
        """The first stop request, with the earliest deadline of all; None if there is none."""
        requests = [request for request in (self._signalled(), self._noticed) if request]
        if not requests:
            return None
        first = min(requests, key=lambda request: request.requested_at_s)
        return replace(first, deadline_at_s=min(request.deadline_at_s for request in requests))

    def _signalled(self) -> StopRequest | None:
        """The first signal, with the earliest deadline of all signals."""
        received = dict(self._received)  # a copy, because a handler may add a signal at any moment
        if not received:
            return None
        first = min(received, key=lambda number: received[number])
        # After Ctrl+C only the person kills, at a time that nobody knows. A scheduler kills after its grace period,
        # which begins with its own signal and not with the first one.
        deadline_at_s = min(
            instant + (math.inf if number == signal.SIGINT else self.grace_s) for number, instant in received.items()
        )
        return StopRequest(first.name, received[first], deadline_at_s)
