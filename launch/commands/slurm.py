"""`indextts-launch slurm`: a job as a chain of time slices, submitted from a login node."""

import argparse
import os

from indextts_job import terminal
from indextts_job.redaction import redacted

from ..job import Job
from ..run_config import check_config, config_argument
from ..slurm import TASK_COLUMNS, SlurmCluster, SlurmOptions, last_error, render
from .arguments import Parsers, add_job_arguments, add_max_failures, job_of, say


def add(places: Parsers) -> None:
    """Add the commands of `slurm`."""
    slurm = places.add_parser("slurm", help="on a SLURM cluster")
    actions = slurm.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_submit(actions)
    for name, act, what in (
        ("status", _status, "slices of a job, and the last error in its log"),
        ("logs", _logs, "print the log; with --follow as it grows"),
        ("cancel", _cancel, "end a job for good; the trainer commits a checkpoint first"),
    ):
        action = actions.add_parser(name, help=what, description=what.capitalize() + ".")
        action.add_argument("job", nargs="?", default=Job().name, help=f"number or name (default: {Job().name})")
        action.set_defaults(act=act)
        if name == "logs":
            action.add_argument("--follow", "-f", action="store_true", help="go on printing")


def _add_submit(actions: Parsers) -> None:
    options = SlurmOptions()
    submit = actions.add_parser(
        "submit",
        help="queue a job as a chain of time slices",
        description="Queue a job. Preempted, timed out or crashed, it goes on by itself until the run is complete.",
    )
    submit.add_argument("--account", default="", help="account that is charged")
    submit.add_argument("--partition", default="", help="partition of the job (default: the cluster's)")
    slices = f"largest number of slices (default: {options.slices})"
    time_limit = f"time limit of one slice (default: {options.time_limit})"
    submit.add_argument("--slices", type=int, default=options.slices, help=slices)
    submit.add_argument("--time", default=options.time_limit, help=time_limit)
    submit.add_argument("--log-folder", default="", help="created if missing (default: the present folder)")
    submit.add_argument("--environment", default=options.environment, help="virtual environment (default: .venv)")
    add_max_failures(submit)
    add_job_arguments(submit, image="container image, instead of a virtual environment")
    submit.set_defaults(act=_submit)


def _submit(given: argparse.Namespace) -> int:
    options = SlurmOptions(
        account=given.account,
        partition=given.partition,
        slices=given.slices,
        time_limit=given.time,
        log_folder=given.log_folder,
        environment=given.environment,
    )
    job = job_of(given)
    script = render(job, options)
    if given.dry_run:
        print(script, end="")  # noqa: T201
        return 0
    if _has_local_config(job):
        check_config(job)  # a wrong key is reported now, and not after hours in the queue
    number = SlurmCluster().submit(script, options)
    say(f"job {number} is queued; look at it with: indextts-launch slurm status {number}")
    return 0


def _has_local_config(job: Job) -> bool:
    path = config_argument(job)
    return bool(path) and "://" not in path


def _status(given: argparse.Namespace) -> int:
    cluster = SlurmCluster()
    tasks = cluster.tasks(cluster.find(given.job))
    out = terminal.console()
    out.print(terminal.Listing(TASK_COLUMNS, [task.row() for task in tasks], [task.notes() for task in tasks]))
    for log in sorted({task.log for task in tasks}):
        out.print(terminal.one_line(f"log: {log}"), soft_wrap=True)
        if error := last_error(log):
            out.print(terminal.one_line(redacted(error)), soft_wrap=True)
    return 0


def _logs(given: argparse.Namespace) -> int:
    cluster = SlurmCluster()
    log = cluster.tasks(cluster.find(given.job))[0].log
    # `tail -F` follows a log also when its file appears only later, after the job has started.
    command = ["tail", "-n", "+1", *(["-F"] if given.follow else []), "--", str(log)]
    os.execvp(command[0], command)  # noqa: S606  # no shell is meant


def _cancel(given: argparse.Namespace) -> int:
    cluster = SlurmCluster()
    number = cluster.find(given.job)
    cluster.cancel(number)
    say(f"job {number} is cancelled; submitting the same run again goes on from its last checkpoint")
    return 0
