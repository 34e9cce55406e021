"""Run the workers of a preparation on this machine: a launcher for each, which restarts its worker by itself."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping

from indextts_job.errors import EXIT_OK, EXIT_STOPPED
from indextts_job.preemption.relay import POLL_S, StopRelay
from indextts_job.waiting import pause
from launch.job import Job, shell_code

WORKER_VARIABLE = "INDEXTTS_WORKER"
"""Names a worker among those of one output."""
DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"


class LocalWorkers:
    """The workers of one job. A stop signal is passed on to all of them and ends the job."""

    def __init__(self, job: Job, say: Callable[[str], None]) -> None:
        """Store the job; `run` starts it.

        Args:
            job: What to run.
            say: Prints a line for the user; must not fail.
        """
        self._job = job
        self._say = say
        self._stops = StopRelay()

    def run(self) -> int:
        """Run all workers to their ends.

        Returns:
            0 when all have ended with 0, else the exit code of the first worker that has not.
        """
        self._stops.listen()
        launcher = [sys.executable, "-m", "launch", "local", "--command", self._job.command]
        launcher += ["--max-failures", str(self._job.max_failures), "--", *self._job.arguments]
        workers = []
        for number in range(self._job.workers):
            environment = {**os.environ, **environment_of(number, self._job.gpus)}
            worker = subprocess.Popen(launcher, start_new_session=True, env=environment)
            self._stops.add(worker)
            workers.append(worker)
        while any(worker.poll() is None for worker in workers):
            self._stops.pass_on()
            pause(POLL_S)
        codes = [shell_code(worker.returncode) for worker in workers]
        self._say(f"{len(codes)} workers ended with {', '.join(map(str, codes))}")
        return code_of(codes)


def code_of(codes: list[int]) -> int:
    """The exit code of all workers together.

    Args:
        codes: Of each, in the order of the workers.
    """
    failed = [code for code in codes if code != EXIT_OK]
    # A stop of one says nothing while another has failed.
    return next((code for code in failed if code != EXIT_STOPPED), next(iter(failed), EXIT_OK))


def environment_of(number: int, gpus: int) -> Mapping[str, str]:
    """The variables that make a process a worker.

    Args:
        number: Number of the worker.
        gpus: GPUs that the workers take in turn; 0 = each sees what there is.
    """
    own = {WORKER_VARIABLE: str(number)}
    return {**own, DEVICES_VARIABLE: str(number % gpus)} if gpus else own
