"""An argument parser that raises what the rest of the program raises."""

import argparse
import sys
from typing import Any, NoReturn

from indextts_job.errors import ConfigError

Commands = Any
"""What argparse's `add_subparsers` returns has no public name."""


class Parser(argparse.ArgumentParser):
    """Wrong arguments are a wrong configuration (I8)."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong."""
        self.print_usage(sys.stderr)
        raise ConfigError(f"{message}. `{self.prog} --help` lists what is possible.")
