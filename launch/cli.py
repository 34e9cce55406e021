"""`indextts-launch`: start a training job where it should run, look at it, end it."""

import argparse
import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from indextts_job.errors import IndexTTSJobError
from launch.job import Job
from launch.local import LocalLauncher
from launch.slurm import TASK_COLUMNS, SlurmCluster, SlurmOptions, last_error, render


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        return int(given.act(given))
    except IndexTTSJobError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="indextts-launch", description="Start a training job where it should run.")
    places = parser.add_subparsers(dest="place", required=True, metavar="PLACE")
    local = places.add_parser(
        "local",
        help="here, restarting after preemptions and crashes",
        description="Run `indextts-job train` here. Exit code 75 starts it again at once, 69, 70 and kills after a "
        "growing pause and at most --max-failures times in a row; 0, 65, 77 and 78 end the job.",
    )
    local.add_argument("--max-failures", type=int, default=3, help="failures in a row that are tolerated (default: 3)")
    _take_train_arguments(local)
    local.set_defaults(act=_local)
    _add_slurm(places.add_parser("slurm", help="on a SLURM cluster"))
    return parser


def _add_slurm(slurm: argparse.ArgumentParser) -> None:
    actions = slurm.add_subparsers(dest="action", required=True, metavar="ACTION")
    job, options = Job(), SlurmOptions()
    submit = actions.add_parser(
        "submit",
        help="queue a job as a chain of time slices",
        description="Queue a job. Preempted, timed out or crashed, it goes on by itself until the run is complete.",
    )
    submit.add_argument("--dry-run", action="store_true", help="print the batch script, queue nothing")
    submit.add_argument("--name", default=job.name, help=f"of the job (default: {job.name})")
    submit.add_argument("--account", default="", help="who pays")
    submit.add_argument("--partition", default="", help="where; the cluster's default if not given")
    submit.add_argument("--slices", type=int, default=options.slices, help=f"at most (default: {options.slices})")
    submit.add_argument("--time", default=options.time_limit, help=f"of one slice (default: {options.time_limit})")
    submit.add_argument("--log-folder", default="", help="made if missing (default: here)")
    submit.add_argument("--environment", default=options.environment, help="virtual environment (default: .venv)")
    submit.add_argument("--image", default="", help="container image, instead of a virtual environment")
    submit.add_argument("--gpus", type=int, default=job.gpus, help=f"(default: {job.gpus})")
    submit.add_argument("--cpus", type=int, default=job.cpus, help=f"(default: {job.cpus})")
    submit.add_argument("--memory-gib", type=int, default=job.memory_gib, help=f"(default: {job.memory_gib})")
    submit.add_argument("--grace-seconds", type=int, default=job.grace_seconds, help="from a stop signal to the kill")
    submit.add_argument("--max-failures", type=int, default=job.max_failures, help="in a row that are tolerated")
    _take_train_arguments(submit)
    submit.set_defaults(act=_submit)
    for name, act, what in (
        ("status", _status, "slices of a job, and the last error in its log"),
        ("logs", _logs, "print the log; with --follow as it grows"),
        ("cancel", _cancel, "end a job for good; the trainer commits a checkpoint first"),
    ):
        action = actions.add_parser(name, help=what, description=what.capitalize() + ".")
        action.add_argument("job", nargs="?", default=job.name, help=f"number or name (default: {job.name})")
        action.set_defaults(act=act)
        if name == "logs":
            action.add_argument("--follow", "-f", action="store_true", help="go on printing")


def _take_train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of `indextts-job train`")


def _train_arguments(given: argparse.Namespace) -> tuple[str, ...]:
    return tuple(argument for argument in given.arguments if argument != "--")


def _local(given: argparse.Namespace) -> int:
    return LocalLauncher(Job(arguments=_train_arguments(given), max_failures=given.max_failures), _say).run()


def _submit(given: argparse.Namespace) -> int:
    job = Job(
        arguments=_train_arguments(given) or Job().arguments,
        name=given.name,
        image=given.image,
        gpus=given.gpus,
        cpus=given.cpus,
        memory_gib=given.memory_gib,
        grace_seconds=given.grace_seconds,
        max_failures=given.max_failures,
    )
    options = SlurmOptions(
        account=given.account,
        partition=given.partition,
        slices=given.slices,
        time_limit=given.time,
        log_folder=given.log_folder,
        environment=given.environment,
    )
    script = render(job, options)
    if given.dry_run:
        print(script, end="")  # noqa: T201
        return 0
    number = SlurmCluster().submit(script, options)
    _say(f"job {number} is queued; look at it with: indextts-launch slurm status {number}")
    return 0


def _status(given: argparse.Namespace) -> int:
    cluster = SlurmCluster()
    tasks = cluster.tasks(cluster.find(given.job))
    table = Table(*TASK_COLUMNS)
    for task in tasks:
        table.add_row(*task.row())
    console = Console()
    console.print(table)
    for log in sorted({task.log for task in tasks}):
        console.print(f"log: {log}", highlight=False, soft_wrap=True)
        if error := last_error(log):
            console.print(error, highlight=False, soft_wrap=True, markup=False)
    return 0


def _logs(given: argparse.Namespace) -> int:
    cluster = SlurmCluster()
    log = cluster.tasks(cluster.find(given.job))[0].log
    command = ["tail", "-n", "+1", *(["-F"] if given.follow else []), "--", str(log)]
    os.execvp(command[0], command)  # noqa: S606  # no shell is meant


def _cancel(given: argparse.Namespace) -> int:
    cluster = SlurmCluster()
    number = cluster.find(given.job)
    cluster.cancel(number)
    _say(f"job {number} is cancelled; submitting the same run again goes on from its last checkpoint")
    return 0


def _say(message: str) -> None:
    print(f"launcher    {message}", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
