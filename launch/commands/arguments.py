"""Arguments that the commands of all places share, and the output of the launcher."""

import argparse
from typing import Any

from indextts_job import terminal
from launch.job import COMMANDS, Job

Parsers = Any
"""The type that argparse's `add_subparsers` returns; argparse has no public name for it."""


def add_job_arguments(parser: argparse.ArgumentParser, **help_texts: str) -> None:
    """Add one argument for each field of a `Job`.

    Args:
        parser: Parser of a `submit` command.
        help_texts: Help texts by the name of the argument, where a place needs another one than the usual.
    """
    job = Job()
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted, and submit nothing")
    parser.add_argument("--name", default="", help=help_texts.get("name", f"name of the job (default: {job.name})"))
    parser.add_argument("--image", default="", help=help_texts.get("image", "container image"))
    add_worker_arguments(parser)
    parser.add_argument("--nodes", type=int, default=job.nodes, help=f"number of nodes (default: {job.nodes})")
    parser.add_argument("--gpus", type=int, default=job.gpus, help=f"GPUs per node (default: {job.gpus})")
    parser.add_argument("--cpus", type=int, default=job.cpus, help=f"CPUs per node (default: {job.cpus})")
    memory = f"memory per node (default: {job.memory_gib})"
    parser.add_argument("--memory-gib", type=int, default=job.memory_gib, help=memory)
    text = f"seconds from a stop signal to the kill (default: {job.grace_seconds})"
    # No default here: on Kubernetes only a grace that was given may replace the one of a cloud's spot nodes.
    parser.add_argument("--grace-seconds", type=int, help=text)
    add_train_arguments(parser)


def add_max_failures(parser: argparse.ArgumentParser) -> None:
    """Add `--max-failures`. Kubernetes has none: it cannot count failures in a row."""
    job = Job()
    text = f"failures in a row that are tolerated (default: {job.max_failures})"
    parser.add_argument("--max-failures", type=int, default=job.max_failures, help=text)


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--command` and `--workers`."""
    job = Job()
    text = f"of indextts-job: train, or prepare with --workers (default: {job.command})"
    parser.add_argument("--command", choices=COMMANDS, default=job.command, help=text)
    text = f"processes that share a preparation (default: {job.workers})"
    parser.add_argument("--workers", type=int, default=job.workers, help=text)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that are passed to the trainer."""
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the command, after --")


def train_arguments(given: argparse.Namespace) -> tuple[str, ...]:
    """The arguments that are passed to the trainer."""
    # argparse.REMAINDER keeps the separator.
    return tuple(argument for argument in given.arguments if argument != "--")


def job_of(given: argparse.Namespace) -> Job:
    """The job that the arguments describe."""
    job = Job()
    return Job(
        arguments=train_arguments(given) or ((f"{given.command}.yaml",) if given.command != "train" else job.arguments),
        command=given.command,
        workers=given.workers,
        name=given.name or job.name,
        image=given.image,
        nodes=given.nodes,
        gpus=given.gpus,
        cpus=given.cpus,
        memory_gib=given.memory_gib,
        grace_seconds=job.grace_seconds if given.grace_seconds is None else given.grace_seconds,
        max_failures=getattr(given, "max_failures", job.max_failures),
    )


def say(message: str) -> None:
    """Print one line of the launcher. A closed output is ignored: the job goes on without messages."""
    terminal.say(f"launcher    {terminal.one_line(message)}")
