"""Starts one process per GPU of this node, passes signals on, and ends them together. Imports no torch.

This replaces torchrun with a fixed number of nodes. torchrun loses the exit code of the rank that failed (I8) and does
not give the ranks the whole grace period; this does both.
"""

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from indextts_job import terminal
from indextts_job.attempt.nodes import Nodes
from indextts_job.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED, EXIT_UNAVAILABLE
from indextts_job.preemption.relay import POLL_S, StopRelay
from indextts_job.scheduler import RENDEZVOUS_VARIABLE
from indextts_job.waiting import pause

LINGER_S = 30.0
"""Time for the other ranks after one has ended. If that one failed, rank 0 may be in the middle of a save."""
STOPPED_LINGER_S = 5.0
"""The same once a stop is requested: the first rank then ends after the last commit, or when its time is up."""
INSISTED_S = 1.0
"""Time for all ranks to end after a second Ctrl+C."""
KILLED_S = 5.0
"""Time to wait for the end of a killed process. The kernel may keep it while a read hangs."""
SHOWN_BYTES = 4000
"""Bytes of a rank's standard error that are shown: a traceback and some lines before it."""
ENDED_WELL = (EXIT_OK, EXIT_STOPPED)
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """End this rank when the process that started it ends.

    After a SIGKILL of that process the scheduler starts the job again, and a rank left behind would write to the same
    run and hold its GPU.
    """
    if RENDEZVOUS_VARIABLE in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class _Rank:
    number: int
    process: "subprocess.Popen[bytes]"
    errors: Path | None
    """File with its standard error; None for rank 0, which shares ours."""
    code: int | None = None
    killed_by_us: bool = False
    unheard: bool = False
    """Whether a stop signal ended it before it had installed its handlers."""

    @property
    def failed(self) -> bool:
        """Whether it ended with an error by itself."""
        return self.code not in ENDED_WELL and not self.killed_by_us

    @property
    def left_well(self) -> bool:
        """Whether it ended in order, so that other ranks lost the connection to it."""
        return (self.number == 0 or self.unheard) and self.code in ENDED_WELL

    def last_words(self) -> str:
        """The last bytes of its standard error, as text."""
        if self.errors is None:
            return ""
        return self.errors.read_bytes()[-SHOWN_BYTES:].decode(errors="replace").strip()


@dataclass
class ProcessesOfNode:
    """The ranks of this node, from start to end. As their last action all ranks wait for rank 0."""

    command: Sequence[str]
    count: int
    stopped: Callable[[], bool] = lambda: False
    """Whether a stop was requested before this object installed its handlers."""
    nodes: Nodes = field(default_factory=Nodes)
    _ranks: list[_Rank] = field(default_factory=list)
    _stops: StopRelay = field(default_factory=StopRelay)
    _ending_since_s: float | None = None
    """Instant at which the first rank ended, or a second Ctrl+C asked for the end of all."""

    def run(self) -> int:
        """Start all ranks and wait for their end.

        Returns:
            The exit code of the rank that failed first; otherwise 75 if they stopped, 0 if they are complete.
        """
        # Before the first rank exists: a signal in between would end this process and leave ranks behind.
        self._stops.listen()
        if self.stopped():
            self._stops.note(signal.SIGTERM)
        # For the rendezvous and the errors of ranks; both are needed only while they run.
        with tempfile.TemporaryDirectory(prefix="indextts-ranks-") as folder:
            try:
                for local in range(self.count):
                    self._ranks.append(self._start(local, Path(folder)))
                    self._stops.add(self._ranks[-1].process)
                return self._exit_code(self._wait())
            finally:
                self._end_all()

    def _start(self, local: int, folder: Path) -> _Rank:
        number = self.nodes.index * self.count + local
        alone = self.nodes.count == 1
        environment = {
            # All ranks are on this node. By default gloo resolves the host name, which may fail in a container.
            **({"GLOO_SOCKET_IFNAME": "lo"} if alone else {}),
            **os.environ,
            "RANK": str(number),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(self.nodes.count * self.count),
            "LOCAL_WORLD_SIZE": str(self.count),
            # A file on one node: unlike a free port, nobody else can take it in between.
            RENDEZVOUS_VARIABLE: f"file://{folder}/rendezvous" if alone else f"tcp://{self.nodes.meeting}",
        }
        # A session of its own: a terminal sends Ctrl+C to its whole group, and this process would send it once more.
        if number == 0:
            process = subprocess.Popen(self.command, env=environment, start_new_session=True)
            return _Rank(number, process, None)
        # Only rank 0 reports. The errors of the others go to a file: the end is shown if one of them is the cause.
        errors = folder / f"rank-{number}"
        with errors.open("wb") as file:
            process = subprocess.Popen(
                self.command, env=environment, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True
            )
        return _Rank(number, process, errors)

    def _end_all(self) -> None:
        """Kill the ranks that still run. A rank that the kernel keeps (a read that hangs) is not waited for long."""
        for rank in self._ranks:
            if rank.process.poll() is None:
                rank.process.kill()
        for rank in self._ranks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                rank.process.wait(KILLED_S)

    def _wait(self) -> list[_Rank]:
        """Wait until all ranks have ended; returns those that failed, in the order of their ends."""
        failed: list[_Rank] = []
        while any(rank.code is None for rank in self._ranks):
            self._stops.pass_on()
            failed += [rank for rank in self._newly_ended() if rank.failed]
            overdue_s = self._overdue_s()
            if overdue_s > 0:
                self._kill_the_rest()
            # A killed rank that does not end hangs in the kernel; waiting longer would not change that.
            if overdue_s > KILLED_S:
                break
            pause(POLL_S)
        return failed

    def _overdue_s(self) -> float:
        """Seconds since the ranks that still run should have ended; not positive while they may run.

        A rank ends only after the last save, so once one has ended no other is needed. A rank that is still starting
        up does not notice that the others have left, and has to be ended from here.
        """
        now_s = time.monotonic()
        if self._ending_since_s is None and (self._stops.insisted or any(r.code is not None for r in self._ranks)):
            self._ending_since_s = now_s
        if self._ending_since_s is None:
            return -math.inf
        return now_s - self._ending_since_s - self._linger_s()

    def _linger_s(self) -> float:
        if self._stops.insisted:
            return INSISTED_S
        return STOPPED_LINGER_S if self._stops.requested else LINGER_S

    def _kill_the_rest(self) -> None:
        for rank in self._ranks:
            if rank.code is None:
                rank.killed_by_us = True
                rank.process.kill()

    def _exit_code(self, failed: list[_Rank]) -> int:
        if self._interrupted():
            return EXIT_INTERRUPTED
        cause = self._cause(failed)
        if cause is None:
            return EXIT_STOPPED if any(rank.code == EXIT_STOPPED for rank in self._ranks) else EXIT_OK
        self._report(cause)
        # The code of the rank that failed decides whether a launcher retries (I8).
        return cause.code or EXIT_OK

    def _interrupted(self) -> bool:
        """Whether a second Ctrl+C ended a rank that could not commit."""
        return self._stops.insisted and any(rank.killed_by_us or rank.unheard for rank in self._ranks)

    def _cause(self, failed: list[_Rank]) -> _Rank | None:
        """The rank whose failure explains the end of the others; None if they ended well."""
        # A rank that lost another one (exit code 69) is not the cause if the other one ended in order: rank 0 may have
        # left for a newer attempt, or a stop signal may have ended a rank before it had installed its handlers.
        causes = [rank for rank in failed if rank.code != EXIT_UNAVAILABLE]
        if causes:
            return causes[0]
        if any(rank.left_well for rank in self._ranks):
            return None
        return failed[0] if failed else None

    def _newly_ended(self) -> list[_Rank]:
        ended = []
        for rank in self._ranks:
            code = rank.process.poll()
            if rank.code is None and code is not None:
                # subprocess gives the negative signal number; shells and launchers use 128 + the number.
                shown = 128 - code if code < 0 else code
                rank.code = self._stops.meaning(shown)
                rank.unheard = rank.code != shown
                ended.append(rank)
        return ended

    def _report(self, rank: _Rank) -> None:
        words = terminal.lines(rank.last_words()) or f"it ended with exit code {rank.code}"
        if rank.number:
            total = self.nodes.count * self.count
            # Rank 0 shares our standard error and has said its error already.
            terminal.say(f"error: rank {rank.number} of {total}: {words.removeprefix('error: ')}", sys.stderr)
