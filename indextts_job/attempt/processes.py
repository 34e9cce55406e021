"""One process per GPU of this node: started, signalled and ended together. Imports no torch.

Does what torchrun does with a fixed number of nodes, and keeps what torchrun loses: the exit code (I8), and the whole
grace period.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from indextts_job import terminal
from indextts_job.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED, EXIT_UNAVAILABLE, ConfigError
from indextts_job.hardware.plan import HardwareConfig
from indextts_job.hardware.visible import visible_gpus
from indextts_job.preemption.relay import POLL_S, StopRelay
from indextts_job.scheduler import (
    MEETING_VARIABLE,
    NODE_INDEX_VARIABLE,
    NODES_VARIABLE,
    RENDEZVOUS_VARIABLE,
    whole_number,
)
from indextts_job.waiting import pause

LINGER_S = 30.0
"""After a rank has ended, the others have so long to end too; if it failed, rank 0 may be in the middle of a save."""
STOPPED_LINGER_S = 5.0
"""The same once a stop is requested: the first rank ends when everything is committed, or when the time is up."""
INSISTED_S = 1.0
"""The same after a second Ctrl+C, whether a rank has ended or not."""
KILLED_S = 5.0
"""How long the end of a killed process is waited for: the kernel may hold it while a read hangs."""
SHOWN_BYTES = 4000
ENDED_WELL = (EXIT_OK, EXIT_STOPPED)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """Which of several nodes this is. All of them have the same number of processes."""

    count: int = 1
    index: int = 0
    meeting: str = ""
    """`host:port` on the first of them; unused for one node."""


def read_nodes(environment: Mapping[str, str]) -> Nodes:
    """From what the launchers set; the index is SLURM's, or that of an Indexed Job.

    Raises:
        ConfigError: Several nodes and no place to meet, or a variable that holds something else than it should.
    """
    count = whole_number(environment, NODES_VARIABLE, 1, least=1)
    if count == 1:
        return Nodes()
    meeting = environment.get(MEETING_VARIABLE, "")
    host, _, port = meeting.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()):
        raise ConfigError(
            f"{NODES_VARIABLE} is {count}, but {MEETING_VARIABLE} is {meeting!r}, expected host:port on the first node."
        )
    sources = (NODE_INDEX_VARIABLE, "JOB_COMPLETION_INDEX", "SLURM_NODEID")
    source = next((name for name in sources if name in environment), None)
    if source is None:  # two nodes that take themselves for the first would wait for each other
        raise ConfigError(f"{NODES_VARIABLE} is {count}, but none of {', '.join(sources)} says which of them this is.")
    index = whole_number(environment, source, 0)
    if index >= count:
        raise ConfigError(f"{source} is {index}, but {NODES_VARIABLE} is {count}: expected 0 … {count - 1}.")
    return Nodes(count=count, index=index, meeting=meeting)


def wanted_processes(config: HardwareConfig, environment: Mapping[str, str], devices: Path = Path("/dev")) -> int:
    """How many processes to start here; 1 also where somebody else has started several already.

    Args:
        config: What the user wishes.
        environment: Of this process.
        devices: Folder of the device files.
    """
    if "RANK" in environment:
        return 1
    if config.processes or config.device == "cpu":
        return max(1, config.processes)
    return max(1, visible_gpus(environment, devices))


def die_with_parent() -> None:
    """Do not outlive the process that started this one: two jobs would write one run."""
    if RENDEZVOUS_VARIABLE in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class _Rank:
    number: int
    process: "subprocess.Popen[bytes]"
    errors: Path | None
    """What it says on its standard error; rank 0 shares ours."""
    code: int | None = None
    killed_by_us: bool = False
    unheard: bool = False
    """Whether a stop signal ended it before it listened."""

    def last_words(self) -> str:
        if self.errors is None:
            return ""
        return self.errors.read_bytes()[-SHOWN_BYTES:].decode(errors="replace").strip()


@dataclass
class ProcessesOfNode:
    """The ranks of this node, from their start to their end. The last thing that ranks do is to wait for rank 0."""

    command: Sequence[str]
    count: int
    stopped: Callable[[], bool] = lambda: False
    """Whether a stop was requested before this listened."""
    nodes: Nodes = field(default_factory=Nodes)
    _ranks: list[_Rank] = field(default_factory=list)
    _stops: StopRelay = field(default_factory=StopRelay)

    def run(self) -> int:
        """Start all, and wait for their end.

        Returns:
            The exit code of the rank that failed first; else 75 if they stopped, 0 if they are complete.
        """
        self._stops.listen()
        if self.stopped():
            self._stops.note(signal.SIGTERM)
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
            # All are here, and a container's host name may lead nowhere.
            **({"GLOO_SOCKET_IFNAME": "lo"} if alone else {}),
            **os.environ,
            "RANK": str(number),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(self.nodes.count * self.count),
            "LOCAL_WORLD_SIZE": str(self.count),
            RENDEZVOUS_VARIABLE: f"file://{folder}/rendezvous" if alone else f"tcp://{self.nodes.meeting}",
        }
        # A session of its own: Ctrl+C reaches each of them once, through this process.
        if number == 0:
            process = subprocess.Popen(self.command, env=environment, start_new_session=True)
            return _Rank(number, process, None)
        errors = folder / f"rank-{number}"
        with errors.open("wb") as file:
            process = subprocess.Popen(
                self.command, env=environment, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True
            )
        return _Rank(number, process, errors)

    def _end_all(self) -> None:
        """Leave no rank behind. One that the kernel does not let go of (a read that hangs) is not waited for long."""
        for rank in self._ranks:
            if rank.process.poll() is None:
                rank.process.kill()
        for rank in self._ranks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                rank.process.wait(KILLED_S)

    def _wait(self) -> list[_Rank]:
        """Until all have ended; returns those that failed, in the order of their ends."""
        first_ended_at_s: float | None = None
        failed: list[_Rank] = []
        while any(rank.code is None for rank in self._ranks):
            self._stops.pass_on()
            for rank in self._newly_ended():
                if rank.code not in ENDED_WELL and not rank.killed_by_us:
                    failed.append(rank)
                # They wait for the last save before they end, so after the first nobody is needed any more. Who has
                # not come to train yet does not notice that the others have left.
                first_ended_at_s = first_ended_at_s or time.monotonic()
            linger_s = STOPPED_LINGER_S if self._stops.requested else LINGER_S
            if self._stops.insisted:
                first_ended_at_s, linger_s = first_ended_at_s or time.monotonic(), INSISTED_S
            if first_ended_at_s is not None and time.monotonic() > first_ended_at_s + linger_s:
                for rank in self._ranks:
                    if rank.code is None:
                        rank.killed_by_us = True
                        rank.process.kill()
                if time.monotonic() > first_ended_at_s + linger_s + KILLED_S:
                    break
            pause(POLL_S)
        return failed

    def _exit_code(self, failed: list[_Rank]) -> int:
        if self._stops.insisted and any(rank.killed_by_us or rank.unheard for rank in self._ranks):
            return EXIT_INTERRUPTED
        # To have lost another rank is never the cause: also not when rank 0 has left for a newer attempt, nor when a
        # stop signal ended a rank before it listened.
        causes = [rank for rank in failed if rank.code != EXIT_UNAVAILABLE]
        left_well = any((rank.number == 0 or rank.unheard) and rank.code in ENDED_WELL for rank in self._ranks)
        if not causes and (not failed or left_well):
            return EXIT_STOPPED if any(rank.code == EXIT_STOPPED for rank in self._ranks) else EXIT_OK
        cause = (causes or failed)[0]
        self._report(cause)
        return cause.code or EXIT_OK

    def _newly_ended(self) -> list[_Rank]:
        ended = []
        for rank in self._ranks:
            code = rank.process.poll()
            if rank.code is None and code is not None:
                shown = 128 - code if code < 0 else code
                rank.code = self._stops.meaning(shown)
                rank.unheard = rank.code != shown
                ended.append(rank)
        return ended

    def _report(self, rank: _Rank) -> None:
        words = terminal.lines(rank.last_words()) or f"it ended with exit code {rank.code}"
        if rank.number:
            total = self.nodes.count * self.count
            terminal.say(f"error: rank {rank.number} of {total}: {words.removeprefix('error: ')}", sys.stderr)
