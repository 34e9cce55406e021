"""`indextts-launch local`: run a job on this machine and restart it after preemptions and crashes."""

import argparse

from launch.commands.arguments import (
    Parsers,
    add_max_failures,
    add_train_arguments,
    add_worker_arguments,
    say,
    train_arguments,
)
from launch.job import Job
from launch.local import LocalLauncher
from launch.local_workers import LocalWorkers


def add(places: Parsers) -> None:
    """Add the command `local`."""
    local = places.add_parser(
        "local",
        help="here, restarting after preemptions and crashes",
        description="Run `indextts-job train` or the workers of a preparation here. Exit code 75 starts it again at "
        "once, 69, 70 and kills after a growing pause and at most --max-failures times in a row; 0, 65, 77, 78 and 79 "
        "end the job.",
    )
    add_max_failures(local)
    add_worker_arguments(local)
    local.add_argument(
        "--gpus", type=int, default=0, help="with --workers: GPUs, of which each worker gets one in turn"
    )
    add_train_arguments(local)
    local.set_defaults(act=_run)


def _run(given: argparse.Namespace) -> int:
    job = Job(
        arguments=train_arguments(given),
        command=given.command,
        workers=given.workers,
        gpus=given.gpus,
        max_failures=given.max_failures,
    )
    return LocalWorkers(job, say).run() if job.workers > 1 else LocalLauncher(job, say).run()
