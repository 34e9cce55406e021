"""The version of this program: the release, and the commit if it is known."""

import json
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
REVISION_FILE = "REVISION"
"""File beside this one in images and releases, with the commit and nothing else."""
SHOWN_DIGITS = 12
GIT_S = 5.0
"""Bound of the call of git, which may wait for a network file system. The version is recorded at every start."""


def program_version(package: Path = PACKAGE) -> str:
    """The version as `0.1.0 (commit 74b318b3a0c1)`; without the commit if it is unknown.

    Args:
        package: Folder of the package.
    """
    try:
        release = distribution("indextts-job").version
    except PackageNotFoundError:  # run from a checkout that was never installed
        release = "not installed"
    found = commit(package)
    return f"{release} (commit {found})" if found else release


def commit(package: Path = PACKAGE) -> str:
    """The commit that this code was built from, is checked out at, or was installed from; empty if it is unknown.

    Args:
        package: Folder of the package.
    """
    return _built(package) or _checked_out(package.parent) or _installed(package)


def _built(package: Path) -> str:
    try:
        text = (package / REVISION_FILE).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return "" if text == "unknown" else text[:SHOWN_DIGITS]


def _checked_out(root: Path) -> str:
    # Only a checkout of this project counts: a virtual environment may be inside the checkout of another one.
    if not ((root / ".git").exists() and (root / "pyproject.toml").exists()):
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", f"--abbrev={SHOWN_DIGITS}", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=GIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().replace("-dirty", ", with changes") if done.returncode == 0 else ""


def _installed(package: Path) -> str:
    """The commit that pip records when it installs from a repository (PEP 610)."""
    with suppress(PackageNotFoundError, ValueError, KeyError, TypeError):
        installed = distribution("indextts-job")
        if Path(str(installed.locate_file(package.name))).resolve() != package:
            return ""  # the installed package is not the one that runs
        return str(json.loads(installed.read_text("direct_url.json") or "{}")["vcs_info"]["commit_id"])[:SHOWN_DIGITS]
    return ""
