"""Stop signals on their way through a launcher to the processes that it started.

A launcher does not decide what a stop means. It passes the signal on, waits for the exit code, and knows which exit
codes come of the signal itself. The handler stores the signal and nothing else: the loop that waits for the children
passes it on, so no child can be missed while it is being started, and none gets a signal twice.
"""

import signal
from types import FrameType
from typing import TYPE_CHECKING

from indextts_job.errors import EXIT_STOPPED
from indextts_job.waiting import pause

if TYPE_CHECKING:
    import subprocess

FORWARDED = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR2", "SIGHUP") if hasattr(signal, name))
"""Signals that ask for a stop: of schedulers and people, the notice before a time limit, a terminal that was closed."""
UNHANDLED_CODES = (129, 130, 138, 140, 143)
"""128 + SIGHUP, SIGINT, SIGUSR1, SIGUSR2, SIGTERM: how a trainer ends that got the signal before it could listen."""
POLL_S = 0.05
"""How late a signal or an end is noticed: much less than a save takes."""


class StopRelay:
    """What was asked of this process, and the children that are to hear of it."""

    def __init__(self) -> None:
        self._received: list[int] = []
        self._children: list[subprocess.Popen[bytes]] = []
        self._told: dict[int, int] = {}
        """How many of the received signals each child has got, by process id."""

    @property
    def requested(self) -> bool:
        """Whether anybody has asked for a stop."""
        return bool(self._received)

    @property
    def insisted(self) -> bool:
        """Whether somebody has pressed Ctrl+C twice: nothing more is to be waited for."""
        return self._received.count(signal.SIGINT) > 1

    def listen(self) -> None:
        """Take the stop signals of this process from here on. Only the main thread may.

        A signal that the process was started to ignore stays ignored, here and in its children: nohup does that with
        SIGHUP, so that a program outlives its terminal, and a shell with SIGINT for what it puts into the background.
        """
        for number in FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.note)

    def note(self, number: int, _frame: FrameType | None = None) -> None:
        """Keep a signal for the children that are there and for those that come."""
        self._received.append(number)

    def add(self, child: "subprocess.Popen[bytes]") -> None:
        """A child that hears of everything that was asked for so far, and will be."""
        self._children.append(child)
        self._told[child.pid] = 0
        self.pass_on()

    def pass_on(self) -> None:
        """Send the children what they have not got yet. Whoever waits for them calls this again and again."""
        for child in self._children:
            if child.poll() is not None:
                continue
            while self._told[child.pid] < len(self._received):
                number = self._received[self._told[child.pid]]
                self._told[child.pid] += 1
                child.send_signal(number)

    def wait_for(self, child: "subprocess.Popen[bytes]") -> int:
        """Wait for the end of one child, passing signals on; returns its code as `subprocess` gives it."""
        self.add(child)
        while (code := child.poll()) is None:
            self.pass_on()
            pause(POLL_S)
        self._children.remove(child)
        return code

    def pause(self, seconds: float) -> bool:
        """Wait, but not longer than until a stop is requested; returns whether one is."""
        pause(seconds, lambda: self.requested)
        return self.requested

    def meaning(self, exit_code: int) -> int:
        """An exit code in the light of what was asked for.

        A trainer that a stop signal ended before it listened had nothing to save: after a stop that went through here
        this is a stop (75), and not a failure.

        Args:
            exit_code: Of a trainer, as a shell would report it.
        """
        return EXIT_STOPPED if self.requested and exit_code in UNHANDLED_CODES else exit_code
