"""An argument parser that raises the errors of this program instead of ending it."""

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
"""Attribute of parsed arguments that holds the arguments `storage.KEY=VALUE`."""
_STORAGE_SETTING = re.compile(r"storage\.\w+=")
Commands = Any
"""The type that argparse's `add_subparsers` returns; it has no public name."""


class Parser(argparse.ArgumentParser):
    """Raises ConfigError for wrong arguments (I8). Takes no abbreviations: a new flag could change their meaning."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  # argparse's own
        super().__init__(**{"allow_abbrev": False, **options})
        self.takes_storage = False
        """Whether `storage.KEY=VALUE` may stand anywhere among the arguments."""

    def parse_known_args(  # type: ignore[override]  # argparse's overloads say the same in three signatures
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as argparse does, without storage settings: an argument with `nargs="+"` would take them as files."""
        given = list(sys.argv[1:] if args is None else args)
        if not self.takes_storage:
            return super().parse_known_args(given, namespace)
        settings = [argument for argument in given if _STORAGE_SETTING.match(argument)]
        rest = [argument for argument in given if not _STORAGE_SETTING.match(argument)]
        found, unknown = super().parse_known_args(rest, namespace)
        setattr(found, STORAGE_SETTINGS, settings)
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving with exit code 2, which launchers do not know."""
        self.print_usage(sys.stderr)
        raise ConfigError(f"{message}. `{self.prog} --help` lists what is possible.")


def at_least(least: float, kind: type[int] | type[float] = int) -> Callable[[str], float]:
    """A number for `add_argument(type=…)` that is finite and not below another one.

    Args:
        least: Smallest value that is accepted.
        kind: Whole numbers, or any numbers.
    """

    def parse(text: str) -> float:
        try:
            # float() also takes `nan` and `inf`, which are refused below.
            value = kind(text)
        except ValueError:
            value = math.nan
        # Also for what is no number: NaN is not finite.
        if not (math.isfinite(value) and value >= least):
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r}, expected {what} of at least {least:g}")
        return value

    return parse


class ShowVersion(argparse.Action):
    """`--version`: prints release and commit. They are looked up only then, because git takes a moment."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_options: object) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the release and the commit, and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_given: object) -> NoReturn:
        """Print the version and end."""
        # On stdout, where scripts expect the version.
        terminal.say(f"{parser.prog} {program_version()}")
        parser.exit()
