"""Run a job on this machine and restart it as a scheduler would: at once on 75, with limits on failures."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from indextts_job.errors import EXIT_STOPPED
from indextts_job.hardware.scheduler import LAUNCHER_VARIABLE
from launch.job import Job, decide, describe, shell_code

RETRY_BASE_S = 2.0
RETRY_LIMIT_S = 60.0
SHORT_ATTEMPT_S = 30.0


class LocalLauncher:
    """One job on this machine. A stop request to the launcher goes to the trainer, and ends the job."""

    def __init__(self, job: Job, say: Callable[[str], None]) -> None:
        self._job = job
        self._say = say
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()
        self._started_s = time.time()

    def run(self) -> int:
        """Run until the job is complete, wrong, stopped, or has failed too often.

        Returns:
            The last exit code of the trainer.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)
        failures = short_stops = 0
        while True:
            began_s = time.monotonic()
            code = self._attempt()
            failures = 0 if code == EXIT_STOPPED else failures + 1
            # A machine that its cloud is about to take away stops every attempt at once, until it is gone.
            short = code == EXIT_STOPPED and time.monotonic() - began_s < SHORT_ATTEMPT_S
            short_stops = short_stops + 1 if short else 0
            next_move = decide(code, failures, self._job.max_failures)
            if next_move == "end" or self._stopped.is_set():
                self._say(f"trainer ended with {code} ({describe(code)})")
                return code
            wait_s = _pause_s(failures if next_move == "retry" else short_stops - 1)
            self._say(
                f"trainer ended with {code} ({describe(code)}); starting it again"
                + (f" in {wait_s:.0f} s" if wait_s else "")
                + (f", failure {failures} of {self._job.max_failures}" if next_move == "retry" else "")
            )
            if self._stopped.wait(wait_s):
                return code

    def _attempt(self) -> int:
        command = [sys.executable, "-m", "indextts_job", "train", *self._job.arguments]
        name = f"{socket.gethostname()}-{os.getpid()}-{self._started_s:.0f}"
        environment = {**os.environ, LAUNCHER_VARIABLE: name}
        # A session of its own: Ctrl+C reaches the trainer once, through this process, not twice.
        self._child = subprocess.Popen(command, start_new_session=True, env=environment)
        return shell_code(self._child.wait())

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        self._stopped.set()
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)


def _pause_s(times: int) -> float:
    """Jittered exponential backoff, so that many jobs do not hit a sick store together; none before the first time."""
    if times < 1:
        return 0.0
    return min(RETRY_LIMIT_S, RETRY_BASE_S * 2.0 ** (times - 1)) * random.uniform(0.5, 1.0)  # noqa: S311
