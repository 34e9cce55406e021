"""What all demos need: a folder of their own, headings, and processes whose output is shown."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from indextts_job.errors import ConfigError, IndexTTSJobError

_BARS = "▁▂▃▄▅▆▇█"


class Headings:
    """Prints numbered headings."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._number = 0

    def __call__(self, text: str) -> None:
        """Print the next one."""
        self._number += 1
        self._console.print(f"\n[bold]{self._number}  {text}[/]")


def demand_own_folder(folder: Path) -> None:
    """Make an empty folder of it: remove an earlier demo, refuse anything else."""
    try:
        _take(folder)
    except ValueError as error:  # a zero byte
        raise ConfigError(f"--folder {str(folder)!r}: {error}. Give another one.") from error
    except OSError as error:
        # Not empty again: a process of an earlier demo is still writing there.
        raise ConfigError(f"--folder {folder}: {error.strerror}. Give another one.") from error


def _take(folder: Path) -> None:
    # Only a folder that a demo has marked as its own may be emptied.
    mark = folder / ".indextts-job-demo"
    if folder.exists() and any(folder.iterdir()):
        if not mark.exists():
            raise ConfigError(f"{folder} is not empty and not an earlier demo. Give another one: --folder PATH.")
        _empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _empty(folder: Path) -> None:
    # In reverse order the content of a folder comes before the folder.
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


def shown(console: Console, arguments: Sequence[str]) -> int:
    """Run a program and show its output line by line, set off from the demo's own; returns its exit code.

    Whatever ends the demo meanwhile ends the program too.
    """
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        try:
            for line in process.stdout or ():
                console.print(f"  [dim]|[/] {escape(line.rstrip())}")
        except BaseException:
            process.terminate()
            raise
    return process.returncode


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the demo as Ctrl+C does: with its programs. By default they would run on."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)  # as shells report it

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def trained(console: Console, folder: Path, document: Mapping[str, Any], module: str = "indextts_job") -> int:
    """Write the configuration of a run, train in a process, and show its output; returns its exit code.

    Args:
        console: Gets the output.
        folder: Gets the configuration, named after the run.
        document: The configuration.
        module: What is started.
    """
    path = folder / f"{Path(document['run']).name}.yaml"
    path.write_text(yaml.safe_dump(dict(document), sort_keys=False), encoding="utf-8")
    return shown(console, [sys.executable, "-m", module, "train", str(path)])


def demand(code: int, expected: int, what: object) -> None:
    """Go on only after the expected exit code.

    Raises:
        IndexTTSJobError: It is another one.
    """
    if code != expected:
        raise IndexTTSJobError(f"{what} ended with {code}; its output is above.")


def command(name: str) -> str:
    """The command that starts an installed program: its name, or its path outside an active virtual environment."""
    return name if shutil.which(name) else os.path.relpath(Path(sys.executable).parent / name)


def sparkline(values: Sequence[float]) -> str:
    """Values as a row of bars, the lowest and the highest of them as the ends of the scale."""
    low, high = min(values), max(values)
    return "".join(_BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] for value in values)
