"""Runs a program of the user's beside a training: with a limit, ended with its children, its output bounded."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

from indextts_job.waiting import pause

LOOK_S = 0.05
LAST_BYTES = 2**16
"""How much of an output is kept: its end."""
MOST_BYTES = 2**28
"""A program that prints more is ended: its output lies on the disk of the training."""
TERM_S = 2.0
"""From SIGTERM to SIGKILL."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended."""

    code: int | None
    """Its exit code; None when it was ended."""
    output: str
    """The end of what it printed, on either stream."""
    why: str = ""
    """Why it was ended; empty when it ended by itself."""


def run_program(
    arguments: Sequence[str], limit_s: float, *, told: str = "", stopped: Callable[[], bool] = lambda: False
) -> Ended:
    """Run a program to its end.

    Args:
        arguments: Program and arguments; no shell reads them.
        limit_s: Seconds after which it is ended.
        told: Its standard input.
        stopped: Whether it has to end now.

    Raises:
        OSError: It cannot be started.
    """
    # Files and not pipes: a pipe that nobody reads would stop a program with much output, and one that a child of it
    # holds would never end.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as source:
        source.write(told.encode(errors="replace"))
        source.seek(0)
        # A session of its own: what it has started can be ended with it, and a Ctrl+C is not meant for it.
        with subprocess.Popen(
            arguments, stdin=source, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        ) as process:
            why = _watch(process, output, time.monotonic() + limit_s, limit_s, stopped)
            if why:
                _end(process)
        return Ended(None if why else process.returncode, _last_of(output), why)


def _watch(
    process: "subprocess.Popen[bytes]",
    output: IO[bytes],
    until_s: float,
    limit_s: float,
    stopped: Callable[[], bool],
) -> str:
    """Wait for a program; returns why it has to be ended, or nothing when it has ended."""
    while process.poll() is None:
        if stopped():
            return "the training stops"
        if time.monotonic() > until_s:
            return f"its {limit_s:g} s are over"
        if os.fstat(output.fileno()).st_size > MOST_BYTES:
            return f"it has printed more than {MOST_BYTES // 2**20} MiB"
        pause(LOOK_S, stopped)
    return ""


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a program and all that it has started."""
    for number, patience_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, TERM_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)


def _last_of(output: IO[bytes]) -> str:
    output.seek(max(0, os.fstat(output.fileno()).st_size - LAST_BYTES))
    return output.read().decode(errors="replace")
