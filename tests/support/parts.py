"""Real parts that some tests need: skipped with the reason where they are missing; in CI that is a failure."""

import os
import shutil
from collections.abc import Sequence

import pytest

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"


def demand_as_root(programs: Sequence[str], packages: str) -> None:
    """Go on only where these programs are installed and this is root.

    Args:
        programs: Names.
        packages: The Debian packages that have them.
    """
    missing = [program for program in programs if shutil.which(program, path=PATH) is None]
    reason = f"{', '.join(missing)} not installed: apt-get install {packages}" if missing else ""
    if not reason and os.geteuid() != 0:
        reason = f"{programs[0]} wants to be root"
    demand_nothing_missing(reason)


def demand_nothing_missing(missing: str) -> None:
    """Go on only where nothing is missing.

    Args:
        missing: What is missing and how to get it; empty = nothing.
    """
    if missing and os.environ.get("CI"):
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)
