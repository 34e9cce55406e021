"""Pass stop signals on from a launcher to the processes that it started.

The launcher does not decide what a stop means: it passes the signal on and waits for the exit code. The signal handler
only stores the signal. The loop that waits for the children passes it on, so that a child which is just being started
gets it too, and no child gets it twice.
"""

import signal
from types import FrameType
from typing import TYPE_CHECKING

from indextts_job.errors import EXIT_STOPPED
from indextts_job.preemption.signals import STOP_SIGNALS
from indextts_job.waiting import pause

if TYPE_CHECKING:
    import subprocess

FORWARDED = STOP_SIGNALS
"""All signals that the trainer takes as a stop request."""
UNHANDLED_CODES = (129, 130, 138, 140, 143)
"""128 + SIGHUP, SIGINT, SIGUSR1, SIGUSR2, SIGTERM: exit codes of a trainer that got the signal before its handlers
were installed."""
POLL_S = 0.05
"""Largest delay until a signal or the end of a child is noticed: much less than a save takes."""


class StopRelay:
    """The stop signals that this process has received, and the children that get them."""

    def __init__(self) -> None:
        self._received: list[int] = []
        self._children: list[subprocess.Popen[bytes]] = []
        self._told: dict[int, int] = {}
        """Number of the received signals that were sent to each child, by process id."""

    @property
    def requested(self) -> bool:
        """Whether a stop was requested."""
        return bool(self._received)

    @property
    def insisted(self) -> bool:
        """Whether Ctrl+C was pressed twice: then nothing more is waited for."""
        return self._received.count(signal.SIGINT) > 1

    def listen(self) -> None:
        """Install the signal handlers. Only the main thread may call this."""
        # A signal that the process was started with as ignored stays ignored, here and in the children: nohup does
        # that with SIGHUP, and a shell with SIGINT for a background command.
        for number in FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.note)

    def note(self, number: int, _frame: FrameType | None = None) -> None:
        """Store a signal for the present and for future children."""
        self._received.append(number)

    def add(self, child: "subprocess.Popen[bytes]") -> None:
        """Add a child, which gets all signals received so far and all later ones."""
        self._children.append(child)
        self._told[child.pid] = 0
        self.pass_on()

    def pass_on(self) -> None:
        """Send the children the signals that they have not got yet. Has to be called repeatedly while waiting."""
        for child in self._children:
            if child.poll() is not None:
                continue
            while self._told[child.pid] < len(self._received):
                number = self._received[self._told[child.pid]]
                # Counted first: an error of the call must not send the signal a second time.
                self._told[child.pid] += 1
                child.send_signal(number)

    def wait_for(self, child: "subprocess.Popen[bytes]") -> int:
        """Wait for the end of a child and pass signals on meanwhile; returns its `returncode`."""
        self.add(child)
        while (code := child.poll()) is None:
            self.pass_on()
            pause(POLL_S)
        self._children.remove(child)
        return code

    def pause(self, seconds: float) -> bool:
        """Wait until the time is over or a stop is requested; returns whether a stop is requested."""
        pause(seconds, lambda: self.requested)
        return self.requested

    def meaning(self, exit_code: int) -> int:
        """The exit code of a trainer, or 75 if the signal that we passed on has ended it.

        Args:
            exit_code: Exit code of the trainer, as a shell reports it.
        """
        # A trainer that a signal ends had no handlers yet and so nothing to save: a stop, and no failure.
        return EXIT_STOPPED if self.requested and exit_code in UNHANDLED_CODES else exit_code
