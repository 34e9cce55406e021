"""An argument parser that raises what the rest of the program raises."""

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from indextts_job import terminal
from indextts_job.errors import ConfigError
from indextts_job.version import program_version

STORAGE_SETTINGS = "storage_settings"
"""Attribute of parsed arguments: what was given as `storage.KEY=VALUE`."""
_STORAGE_SETTING = re.compile(r"storage\.\w+=")
Commands = Any
"""What argparse's `add_subparsers` returns has no public name."""


class Parser(argparse.ArgumentParser):
    """Wrong arguments are a wrong configuration (I8); a flag is written out, so that a new one cannot change it."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  # argparse's own
        super().__init__(**{"allow_abbrev": False, **options})
        self.takes_storage = False
        """Whether `storage.KEY=VALUE` may stand anywhere among the arguments."""

    def parse_known_args(  # type: ignore[override]  # argparse's overloads say the same in three signatures
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse does it. Storage settings are taken out first: a list of files would swallow them."""
        given = list(sys.argv[1:] if args is None else args)
        if not self.takes_storage:
            return super().parse_known_args(given, namespace)
        settings = [argument for argument in given if _STORAGE_SETTING.match(argument)]
        rest = [argument for argument in given if not _STORAGE_SETTING.match(argument)]
        found, unknown = super().parse_known_args(rest, namespace)
        setattr(found, STORAGE_SETTINGS, settings)
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Say what is wrong."""
        self.print_usage(sys.stderr)
        raise ConfigError(f"{message}. `{self.prog} --help` lists what is possible.")


def at_least(least: float, kind: type[int] | type[float] = int) -> Callable[[str], float]:
    """A number for `add_argument(type=…)` that is finite and not below another one.

    Args:
        least: Smallest value that makes sense.
        kind: Whole numbers, or any.
    """

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= least):
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r}, expected {what} of at least {least:g}")
        return value

    return parse


class ShowVersion(argparse.Action):
    """`--version`: release and commit. Looked up when it is asked for, because git takes a moment."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_options: object) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the release and the commit, and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_given: object) -> NoReturn:
        """Print it and end."""
        terminal.say(f"{parser.prog} {program_version()}")
        parser.exit()
