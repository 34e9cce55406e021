"""Runs the user's command on an export of each validated checkpoint, beside the training.

Nothing depends on it: a failure, a time limit or a stop is a warning, and its figures are curves only.
"""

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indextts_job.background import begin
from indextts_job.checkpoint.manifest import MANIFESTS
from indextts_job.config import RunConfig
from indextts_job.errors import EXIT_OK
from indextts_job.programs import run_program
from indextts_job.report.events import Committed, Emit, Event, Figures, Notice, Validated
from indextts_job.waiting import pause

LOOK_S = 0.1
END_S = 5.0
"""How long the end of an attempt waits for a command that it has ended."""
LONGEST_SHOWN = 4000
"""Characters of a command's output in the log, the last ones."""
EXPORT, STEP = "{export}", "{step}"
"""Replaced in the command: the folder of the export, and the step."""


@dataclass(slots=True)
class ValidationCommand:
    """A reader of events. One command runs at a time; of the checkpoints that come meanwhile the newest waits."""

    command: Sequence[str]
    limit_s: float
    url: str
    """The run's."""
    options: Sequence[str]
    """Arguments of `export` that say how storage is reached."""
    emit: Emit
    _validated: set[int] = field(default_factory=set, init=False)
    """Steps whose checkpoint has not come: it is written in the background, and the next validation may be earlier."""
    _turn: threading.Lock = field(default_factory=threading.Lock, init=False)
    """Held where `_busy` and `_next` change."""
    _busy: bool = field(default=False, init=False)
    _next: Committed | None = field(default=None, init=False)
    _ending: threading.Event = field(default_factory=threading.Event, init=False)

    def __call__(self, event: Event) -> None:
        """Start the command when a checkpoint of the last validated step is complete."""
        if isinstance(event, Validated):
            self._validated.add(event.step)
        elif isinstance(event, Committed) and event.step in self._validated:
            # Up to it: a step may be committed twice, with another tag, and not each validated one is committed.
            self._validated = {step for step in self._validated if step > event.step}
            self._queue(event)

    def _queue(self, event: Committed) -> None:
        with self._turn:
            passed_over, self._next = self._next, event
            begins, self._busy = not self._busy, True
        if passed_over:
            self._tell(passed_over.step, "a newer one came before its turn; it is passed over", warning=True)
        if begins:
            begin(self._run_all, "validation command")

    def _run_all(self) -> None:
        while event := self._taken():
            try:
                with tempfile.TemporaryDirectory() as folder:
                    self._run_on(event, Path(folder) / "export")
            except Exception as error:  # noqa: BLE001  # of a thread that nobody asks: it would vanish
                self._tell(event.step, f"failed: {error}", warning=True)

    def _taken(self) -> Committed | None:
        """The checkpoint whose turn it is; None ends the thread."""
        with self._turn:
            event, self._next = (None if self._ending.is_set() else self._next), None
            self._busy = event is not None
            return event

    def _run_on(self, event: Committed, export: Path) -> None:
        until_s = time.monotonic() + self.limit_s
        source = f"{self.url.rstrip('/')}/{MANIFESTS}/{event.name}"
        program = [sys.executable, "-m", "indextts_job", "export", source, "--output-dir", str(export), *self.options]
        given = [part.replace(EXPORT, str(export)).replace(STEP, str(event.step)) for part in self.command]
        for what, arguments in (("the export", program), ("the command", given)):
            ended = run_program(arguments, max(0.0, until_s - time.monotonic()), stopped=self._ending.is_set)
            if ended.code != EXIT_OK:
                how = f"was ended: {ended.why}" if ended.why else f"ended with {ended.code}"
                self._tell(event.step, f"{what} {how}:\n{ended.output[-LONGEST_SHOWN:]}", warning=True)
                return
        self._tell(event.step, ended.output[-LONGEST_SHOWN:].strip() or "no output")
        if figures := figures_of(ended.output):
            self.emit(Figures(step=event.step, values=figures))

    def finish(self, stopped: Callable[[], bool]) -> None:
        """Wait for the commands at the end of an attempt; end them when a stop is requested.

        Args:
            stopped: Whether one is.
        """
        # The command has a limit of its own.
        while self._busy and not stopped():
            pause(LOOK_S, stopped)
        self._ending.set()
        # The thread ends the program and removes the export; the process would leave both behind.
        until_s = time.monotonic() + END_S
        while self._busy and time.monotonic() < until_s:
            pause(LOOK_S)

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


def figures_of(output: str) -> Mapping[str, float]:
    """The numbers of the last line that is a JSON object; empty without one.

    Args:
        output: What a command printed.
    """
    for line in reversed(output.splitlines()):
        if line.lstrip().startswith("{") and (found := _object(line)):
            return {name: float(value) for name, value in found.items() if _is_number(value)}
    return {}


def _object(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_number(value: object) -> bool:
    # An integer may be larger than any float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
