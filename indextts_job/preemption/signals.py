"""Signals and notices that ask for a stop. A handler stores reason and instant, and nothing else.

Imports nothing but the standard library, so that handlers can be installed before torch is imported: a SIGTERM that
arrives without a handler ends the process with nothing committed.
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
"""SIGUSR2 is the notice before a time limit (Windows has none), SIGHUP the end of a terminal or a login; SIGUSR1 is
left to NCCL."""


class StopSignals:
    """Holds the stop requests of the process.

    After a first SIGINT a second one ends the process at once: its default action is put back, so nothing has to run
    for it. Checkpoints become visible in one operation, so the last one stays intact.
    """

    def __init__(self) -> None:
        self.grace_s = 30.0
        self.risk = ""
        """Why the machine is likelier to be taken away than usual; empty as long as nobody says so."""
        self.wake: int | None = None
        """A descriptor that gets a byte with every request, for a thread that waits for one."""
        self._received: dict[signal.Signals, float] = {}
        """The instant at which each came first."""
        self._noticed: StopRequest | None = None

    def install(self, early: Iterable[tuple[int, float]] = ()) -> None:
        """Start to listen. Only the main thread may; elsewhere nothing happens.

        A signal that the process was started to ignore stays ignored: nohup does that with SIGHUP, and a shell with
        SIGINT for what it puts into the background.

        Args:
            early: Signals that somebody took note of before this, with the instants of the monotonic clock.
        """
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, self._store)
        for number, instant in early:  # looked at after the handlers are in place, so that none falls between
            self.record(number, instant)

    def record(self, number: int, instant: float) -> None:
        """Take note of a signal. Of each number only the first one counts; safe in a handler and in any thread.

        Args:
            number: Of the signal.
            instant: Of the monotonic clock.
        """
        self._received.setdefault(signal.Signals(number), instant)

    def _store(self, number: int, _frame: FrameType | None) -> None:
        self.record(number, time.monotonic())
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def notice(self, reason: str, seconds_left: float) -> None:
        """Take note that the machine will be taken away. May be called from any thread."""
        now_s = time.monotonic()
        self._noticed = StopRequest(reason, now_s, now_s + seconds_left)
        if self.wake is not None:
            with contextlib.suppress(OSError):  # full of bytes that wake it as well
                os.write(self.wake, b"\0")

    def __call__(self) -> StopRequest | None:
        """The first stop request, if there is one, with the earliest deadline that anybody has set."""
        requests = [request for request in (self._signalled(), self._noticed) if request]
        if not requests:
            return None
        first = min(requests, key=lambda request: request.requested_at_s)
        return replace(first, deadline_at_s=min(request.deadline_at_s for request in requests))

    def _signalled(self) -> StopRequest | None:
        """The first signal, with the earliest deadline of all: each counts from its own instant, not from now."""
        received = dict(self._received)  # a handler may add one meanwhile
        if not received:
            return None
        first = min(received, key=lambda number: received[number])
        # Nobody kills after Ctrl+C but the person who pressed it; a scheduler's signal behind it has a deadline.
        deadline_at_s = min(
            instant + (math.inf if number == signal.SIGINT else self.grace_s) for number, instant in received.items()
        )
        return StopRequest(first.name, received[first], deadline_at_s)
