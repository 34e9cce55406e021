"""Arguments that all places share, and how the launcher speaks."""

import argparse
from typing import Any

from indextts_job import terminal
from launch.job import Job

Parsers = Any
"""What argparse's `add_subparsers` returns has no public name."""


def add_job_arguments(parser: argparse.ArgumentParser, **not_here: str) -> None:
    """The job as a value; one argument for each of its fields.

    Args:
        parser: Of a submission.
        not_here: Help texts by name, where they differ.
    """
    job = Job()
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted, and submit nothing")
    parser.add_argument("--name", default="", help=not_here.get("name", f"of the job (default: {job.name})"))
    parser.add_argument("--image", default="", help=not_here.get("image", "container image"))
    parser.add_argument("--nodes", type=int, default=job.nodes, help=f"(default: {job.nodes})")
    parser.add_argument("--gpus", type=int, default=job.gpus, help=f"per node (default: {job.gpus})")
    parser.add_argument("--cpus", type=int, default=job.cpus, help=f"(default: {job.cpus})")
    parser.add_argument("--memory-gib", type=int, default=job.memory_gib, help=f"(default: {job.memory_gib})")
    text = f"from a stop signal to the kill (default: {job.grace_seconds})"
    parser.add_argument("--grace-seconds", type=int, help=text)
    add_train_arguments(parser)


def add_max_failures(parser: argparse.ArgumentParser) -> None:
    """How stubborn the launcher is."""
    job = Job()
    text = f"failures in a row that are tolerated (default: {job.max_failures})"
    parser.add_argument("--max-failures", type=int, default=job.max_failures, help=text)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Whatever goes to the trainer."""
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of `indextts-job train`, after --")


def train_arguments(given: argparse.Namespace) -> tuple[str, ...]:
    """What goes to the trainer."""
    return tuple(argument for argument in given.arguments if argument != "--")


def job_of(given: argparse.Namespace) -> Job:
    """The job that the arguments describe."""
    job = Job()
    return Job(
        arguments=train_arguments(given) or job.arguments,
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
    """One line of the launcher. When nobody can read it any more, the launcher is quiet and goes on."""
    terminal.say(f"launcher    {terminal.one_line(message)}")
