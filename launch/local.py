"""Run a job on this machine and restart it as a scheduler would: at once on 75, with limits on failures."""

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
from launch.job import Failures, Job, decide, describe, read_progress, shell_code

RETRY_BASE_S = 2.0
RETRY_LIMIT_S = 60.0
SHORT_ATTEMPT_S = 30.0
TRAINER = (sys.executable, "-m", "indextts_job", "train")


class LocalLauncher:
    """One job on this machine. A stop request to the launcher goes to the trainer, and ends the job."""

    def __init__(self, job: Job, say: Callable[[str], None], trainer: Sequence[str] = TRAINER) -> None:
        """Nothing is started yet.

        Args:
            job: What to run, and how stubbornly.
            say: Tells a person; must not fail.
            trainer: Command that the job's arguments are added to.
        """
        self._job = job
        self._say = say
        self._trainer = trainer
        self._stops = StopRelay()
        self._started_s = time.time()

    def run(self) -> int:
        """Run until the job is complete, wrong, stopped, or has failed too often.

        Returns:
            The last exit code of the trainer; 75 when a stop ended it before it listened, or before it was started.
        """
        self._stops.listen()
        failures = Failures()
        short_stops = 0
        code = EXIT_STOPPED
        with _temporary_folder() as folder:
            progress = Path(folder) / "progress"
            while not self._stops.requested:
                began_s = time.monotonic()
                code = self._attempt(progress)
                failures = failures.after(code, read_progress(progress))
                # A machine that its cloud is about to take away stops every attempt at once, until it is gone.
                short = code == EXIT_STOPPED and time.monotonic() - began_s < SHORT_ATTEMPT_S
                short_stops = short_stops + 1 if short else 0
                next_move = decide(code, failures.in_a_row, self._job.max_failures)
                if next_move == "end" or self._stops.requested:
                    self._say(f"trainer ended with {code} ({describe(code)})")
                    break
                wait_s = _pause_s(failures.in_a_row if next_move == "retry" else short_stops - 1)
                self._say(
                    f"trainer ended with {code} ({describe(code)}); starting it again"
                    + (f" in {wait_s:.0f} s" if wait_s else "")
                    + (f", failure {failures.in_a_row} of {self._job.max_failures}" if next_move == "retry" else "")
                )
                self._stops.pause(wait_s)
        return code

    def _attempt(self, progress: Path) -> int:
        name = f"{socket.gethostname()}-{os.getpid()}-{self._started_s:.0f}"
        environment = {**os.environ, LAUNCHER_VARIABLE: name, PROGRESS_VARIABLE: str(progress)}
        # A session of its own: Ctrl+C reaches the trainer once, through this process, not twice.
        child = subprocess.Popen([*self._trainer, *self._job.arguments], start_new_session=True, env=environment)
        return self._stops.meaning(shell_code(self._stops.wait_for(child)))


def _temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    try:
        return tempfile.TemporaryDirectory(prefix="indextts-launch-", ignore_cleanup_errors=True)
    except OSError as error:
        raise ConfigError(f"no temporary folder can be written ({error}). Set TMPDIR to one that can.") from error


def _pause_s(times: int) -> float:
    """Jittered exponential backoff, so that many jobs do not hit a sick store together; none before the first time."""
    if times < 1:
        return 0.0
    return min(RETRY_LIMIT_S, RETRY_BASE_S * 2.0 ** (times - 1)) * random.uniform(0.5, 1.0)  # noqa: S311
