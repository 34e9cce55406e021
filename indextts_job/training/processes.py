"""One process per GPU of this node: started, signalled and ended together. Imports no torch.

Does what torchrun does on one node, and keeps what torchrun loses: the exit code (I8), and the whole grace period.
"""

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
from types import FrameType

from indextts_job.errors import EXIT_OK, EXIT_STOPPED, EXIT_UNAVAILABLE
from indextts_job.hardware.plan import HardwareConfig

RENDEZVOUS = "INDEXTTS_RENDEZVOUS"
"""Where the ranks of one node meet; without it torchrun's variables are used."""
LINGER_S = 30.0
"""After a rank has failed, the others have so long to end by themselves; rank 0 may be in the middle of a save."""
POLL_S = 0.05
SHOWN_BYTES = 4000
ENDED_WELL = (EXIT_OK, EXIT_STOPPED)
_PR_SET_PDEATHSIG = 1


def wanted_processes(
    config: HardwareConfig, environment: Mapping[str, str], gpus: Path = Path("/proc/driver/nvidia/gpus")
) -> int:
    """How many processes to start here; 1 also where somebody else has started several already.

    Args:
        config: What the user wishes.
        environment: Of this process.
        gpus: Folder with one entry for each GPU that the driver shows.
    """
    if "RANK" in environment:
        return 1
    if config.processes or config.device == "cpu":
        return max(1, config.processes)
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return max(1, len([entry for entry in chosen.split(",") if entry.strip() not in ("", "-1")]))
    return max(1, len(list(gpus.iterdir()))) if gpus.is_dir() else 1


def die_with_parent() -> None:
    """Do not outlive the process that started this one: two jobs would write one run."""
    if RENDEZVOUS in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class _Rank:
    number: int
    process: "subprocess.Popen[bytes]"
    errors: Path | None
    """What it says on its standard error; rank 0 shares ours."""
    code: int | None = None
    killed_by_us: bool = False

    def last_words(self) -> str:
        if self.errors is None:
            return ""
        return self.errors.read_bytes()[-SHOWN_BYTES:].decode(errors="replace").strip()


@dataclass
class ProcessesOfNode:
    """The ranks of this node, from their start to their end."""

    command: Sequence[str]
    count: int
    stopped: Callable[[], bool] = lambda: False
    """Whether a stop was requested before this listened."""
    _ranks: list[_Rank] = field(default_factory=list)
    _signals: list[int] = field(default_factory=list)
    """Those that came before there was anybody to tell."""

    def run(self) -> int:
        """Start all, and wait for their end.

        Returns:
            The exit code of the rank that failed first; else 75 if they stopped, 0 if they are complete.
        """
        for stop in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(stop, self._forward)
        if self.stopped():
            self._signals.append(signal.SIGTERM)
        with tempfile.TemporaryDirectory(prefix="indextts-ranks-") as folder:
            try:
                for number in range(self.count):
                    self._ranks.append(self._start(number, Path(folder)))
                for received in self._signals:
                    self._forward(received, None)
                return self._wait()
            finally:
                for rank in self._ranks:
                    if rank.process.poll() is None:
                        rank.process.kill()
                    rank.process.wait()

    def _start(self, number: int, folder: Path) -> _Rank:
        environment = {
            "GLOO_SOCKET_IFNAME": "lo",  # they are all here, and a container's host name may lead nowhere
            **os.environ,
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "WORLD_SIZE": str(self.count),
            "LOCAL_WORLD_SIZE": str(self.count),
            RENDEZVOUS: f"file://{folder}/rendezvous",
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

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if len(self._ranks) < self.count:
            self._signals.append(number)
            return
        for rank in self._ranks:
            if rank.process.poll() is None:
                rank.process.send_signal(number)

    def _wait(self) -> int:
        give_up_at_s: float | None = None
        failed: _Rank | None = None
        while any(rank.code is None for rank in self._ranks):
            for rank in self._newly_ended():
                if failed is None and rank.code not in ENDED_WELL and not rank.killed_by_us:
                    failed = rank
                    self._report(rank)
                # Rank 0 saves; nobody is needed after it, and all are after any other.
                if give_up_at_s is None and (rank.number == 0 or rank.code not in ENDED_WELL):
                    give_up_at_s = time.monotonic() + LINGER_S
            if give_up_at_s is not None and time.monotonic() > give_up_at_s:
                for rank in self._ranks:
                    if rank.code is None:
                        rank.killed_by_us = True
                        rank.process.kill()
            time.sleep(POLL_S)
        if failed is not None and failed.code is not None:
            return failed.code
        return EXIT_STOPPED if any(rank.code == EXIT_STOPPED for rank in self._ranks) else EXIT_OK

    def _newly_ended(self) -> list[_Rank]:
        """Those that lost the others come after the one whose loss it was."""
        ended = []
        for rank in self._ranks:
            code = rank.process.poll()
            if rank.code is None and code is not None:
                rank.code = 128 - code if code < 0 else code
                ended.append(rank)
        return sorted(ended, key=lambda rank: rank.code == EXIT_UNAVAILABLE)

    def _report(self, rank: _Rank) -> None:
        words = rank.last_words() or f"it ended with exit code {rank.code}"
        if rank.number:
            print(f"error: rank {rank.number} of {self.count}: {words.removeprefix('error: ')}", file=sys.stderr)  # noqa: T201
