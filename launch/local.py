"""Run a job on this machine and restart it as a scheduler would.

Exit code 75 restarts it at once. Failures restart it after a growing pause and a limited number of times.
"""

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from indextts_job.errors import EXIT_STOPPED, ConfigError
from indextts_job.preemption.relay import StopRelay
from indextts_job.scheduler import LAUNCHER_VARIABLE, PROGRESS_VARIABLE
from indextts_job.storage.patience import backoff_s
from launch.job import Failures, Job, decide, describe, read_progress, shell_code

RETRY_BASE_S = 2.0
RETRY_LIMIT_S = 60.0
SHORT_ATTEMPT_S = 30.0
"""A trainer that was stopped sooner than this has hardly begun: the next one is started after a pause."""
PROGRAM = (sys.executable, "-m", "indextts_job")


class LocalLauncher:
    """One job on this machine. A stop signal to the launcher is passed to the trainer and ends the job."""

    def __init__(self, job: Job, say: Callable[[str], None], trainer: Sequence[str] = ()) -> None:
        """Store the job; `run` starts it.

        Args:
            job: What to run, and how many failures are tolerated.
            say: Prints a line for the user; must not fail.
            trainer: Command line in front of the job's arguments; empty = the job's command.
        """
        self._job = job
        self._say = say
        self._trainer = trainer or (*PROGRAM, job.command)
        self._stops = StopRelay()
        self._started_s = time.time()

    def run(self) -> int:
        """Run attempts until the job is complete, wrong, stopped, or has failed too often.

        Returns:
            The last exit code of the trainer; 75 when a stop signal came before the trainer handled signals, or before
            it was started.
        """
        # Listen first: a signal in between would end the launcher and leave the trainer without one.
        self._stops.listen()
        with _temporary_folder() as folder:
            return self._run_attempts(Path(folder) / "progress")

    def _run_attempts(self, progress: Path) -> int:
        failures = Failures()
        short_stops = 0
        code = EXIT_STOPPED
        while not self._stops.requested:
            began_s = time.monotonic()
            code = self._attempt(progress)
            failures = failures.after(code, read_progress(progress))
            # A machine that its cloud is about to take away stops every attempt soon after its start.
            short = code == EXIT_STOPPED and time.monotonic() - began_s < SHORT_ATTEMPT_S
            short_stops = short_stops + 1 if short else 0
            next_move = decide(code, failures.in_a_row, self._job.max_failures)
            if next_move == "end" or self._stops.requested:
                self._say(f"trainer ended with {code} ({describe(code)})")
                break
            # One short stop is an ordinary preemption and restarts at once; only repetitions wait.
            wait_s = _pause_s(failures.in_a_row if next_move == "retry" else short_stops - 1)
            self._say_restart(code, wait_s, failures.in_a_row if next_move == "retry" else 0)
            self._stops.pause(wait_s)
        return code

    def _say_restart(self, code: int, wait_s: float, failure: int) -> None:
        pause = f" in {wait_s:.0f} s" if wait_s else ""
        count = f", failure {failure} of {self._job.max_failures}" if failure else ""
        self._say(f"trainer ended with {code} ({describe(code)}); starting it again{pause}{count}")

    def _attempt(self, progress: Path) -> int:
        # Two launchers on one machine, or one that got the process id of an earlier one, must have different names.
        name = f"{socket.gethostname()}-{os.getpid()}-{self._started_s:.0f}"
        environment = {**os.environ, LAUNCHER_VARIABLE: name, PROGRESS_VARIABLE: str(progress)}
        # In a session of its own, the trainer receives Ctrl+C once (through this process) instead of twice.
        child = subprocess.Popen([*self._trainer, *self._job.arguments], start_new_session=True, env=environment)
        return self._stops.meaning(shell_code(self._stops.wait_for(child)))


def _temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    try:
        # A failed removal of the folder must not replace the trainer's exit code.
        return tempfile.TemporaryDirectory(prefix="indextts-launch-", ignore_cleanup_errors=True)
    except OSError as error:
        raise ConfigError(f"no temporary folder can be written ({error}). Set TMPDIR to one that can.") from error


def _pause_s(times: int) -> float:
    """Seconds to wait before restart number `times`; 0 for `times` below 1."""
    if times < 1:
        return 0.0
    return backoff_s(times, RETRY_BASE_S, RETRY_LIMIT_S, random.Random())  # noqa: S311  # jitter
