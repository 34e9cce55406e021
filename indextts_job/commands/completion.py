"""`indextts-job completion`: prints a script by which a shell completes commands, flags and files."""

# ruff: noqa: PLC0415  # imports inside functions: a command pays for its own only

import argparse

from indextts_job import errors
from indextts_job.commands.parser import Commands

SHELLS = ("bash", "zsh", "tcsh")


def add(commands: Commands) -> None:
    """Add the command."""
    completion = commands.add_parser(
        "completion",
        help="print a script that completes commands and flags in your shell",
        description="Print a script for the shell. It is written for this release: print it again after an update.",
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(act=_completion)


def _completion(given: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(given.parser, shell=given.shell))  # noqa: T201
    return errors.EXIT_OK
