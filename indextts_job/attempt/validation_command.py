"""Runs the user's command on an export of each validated checkpoint, beside the training.

Nothing depends on it: a failure, a time limit or a stop is a warning, and its figures are curves only.
"""

import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from indextts_job.background import begin
from indextts_job.checkpoint.manifest import MANIFESTS
from indextts_job.config import RunConfig
from indextts_job.errors import EXIT_OK
from indextts_job.report.events import Committed, Emit, Event, Figures, Notice, Validated
from indextts_job.waiting import pause

LOOK_S = 0.1
LONGEST_SHOWN = 4000
"""Characters of a command's output in the log, the last ones."""
EXPORT, STEP = "{export}", "{step}"
"""Replaced in the command: the folder of the export, and the step."""


@dataclass(slots=True)
class ValidationCommand:
    """A reader of events. At most one command runs at a time; a checkpoint that comes meanwhile is passed over."""

    command: Sequence[str]
    limit_s: float
    url: str
    """The run's."""
    options: Sequence[str]
    """Arguments of `export` that say how storage is reached."""
    emit: Emit
    _validated: int = field(default=-1, init=False)
    _busy: threading.Lock = field(default_factory=threading.Lock, init=False)
    _ending: threading.Event = field(default_factory=threading.Event, init=False)

    def __call__(self, event: Event) -> None:
        """Start the command when a checkpoint of the last validated step is complete."""
        if isinstance(event, Validated):
            self._validated = event.step
        elif isinstance(event, Committed) and event.step == self._validated:
            self._begin(event)

    def _begin(self, event: Committed) -> None:
        if not self._busy.acquire(blocking=False):
            self._tell(event.step, "the one before still runs; this checkpoint is passed over", warning=True)
            return
        self._validated = -1  # a step may be committed twice, with another tag
        begin(lambda: self._run(event), "validation command")

    def _run(self, event: Committed) -> None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                self._run_on(event, Path(folder) / "export")
        except OSError as error:
            self._tell(event.step, f"failed: {error}", warning=True)
        finally:
            self._busy.release()

    def _run_on(self, event: Committed, export: Path) -> None:
        until_s = time.monotonic() + self.limit_s
        source = f"{self.url.rstrip('/')}/{MANIFESTS}/{event.name}"
        program = [sys.executable, "-m", "indextts_job", "export", source, "--output-dir", str(export), *self.options]
        given = [part.replace(EXPORT, str(export)).replace(STEP, str(event.step)) for part in self.command]
        for what, arguments in (("the export", program), ("the command", given)):
            code, output = self._ran(arguments, until_s)
            if code != EXIT_OK:
                self._tell(event.step, f"{what} {_ended(code, self.limit_s)}:\n{output[-LONGEST_SHOWN:]}", warning=True)
                return
        self._tell(event.step, output[-LONGEST_SHOWN:].strip() or "no output")
        if figures := figures_of(output):
            self.emit(Figures(step=event.step, values=figures))

    def _ran(self, arguments: Sequence[str], until_s: float) -> tuple[int | None, str]:
        """Exit code and output of a program; the code is None when time or a stop ended it."""
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            # Into a file: a pipe that nobody reads would stop a program with much output.
            with subprocess.Popen(
                arguments, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            ) as process:
                while process.poll() is None and time.monotonic() < until_s and not self._ending.is_set():
                    pause(LOOK_S, self._ending.is_set)
                code = process.poll()
                process.kill()
            output.seek(0)
            return code, output.read()

    def finish(self, stopped: Callable[[], bool]) -> None:
        """Wait for the command at the end of an attempt; end it when a stop is requested.

        Args:
            stopped: Whether one is.
        """
        # The command has a limit of its own.
        while self._busy.locked() and not stopped():
            pause(LOOK_S, stopped)
        self._ending.set()

    def _tell(self, step: int, message: str, *, warning: bool = False) -> None:
        self.emit(Notice(step=step, topic="command", message=f"step {step}: {message}", warning=warning))


def validation_command(config: RunConfig, emit: Emit) -> ValidationCommand | None:
    """The command of a run; None where it has none.

    Args:
        config: The run's.
        emit: Gets its output and its figures.
    """
    if not config.validation.command:
        return None
    endpoint = config.storage.endpoint_url
    options = [f"storage.endpoint_url={endpoint}"] if endpoint else []
    limit_s = config.validation.command_seconds
    return ValidationCommand(config.validation.command, limit_s, config.run, options, emit)


def _ended(code: int | None, limit_s: float) -> str:
    return f"was ended, after {limit_s:g} s or by a stop" if code is None else f"ended with {code}"


def figures_of(output: str) -> Mapping[str, float]:
    """The numbers of the last line that is a JSON object; empty without one.

    Args:
        output: What a command printed.
    """
    for line in reversed(output.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return {name: float(value) for name, value in found.items() if _is_number(value)}
    return {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
