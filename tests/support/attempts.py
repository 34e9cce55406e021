"""Whole attempts inside the test's process, for what needs no signal from outside."""

import io
from dataclasses import dataclass

from indextts_job.attempt.run import run_attempt
from indextts_job.config import RunConfig
from indextts_job.errors import IndexTTSJobError
from indextts_job.preemption.signals import StopSignals
from indextts_job.report.console import ConsoleReport
from indextts_job.report.events import Event, StepDone


@dataclass(frozen=True, slots=True)
class Attempted:
    """How an attempt ended, and what it printed."""

    code: int
    output: str
    error: str


class Stopping(ConsoleReport):
    """Requests a stop when a step is done, with time enough for everything."""

    def __init__(self, stream: io.StringIO, stop: StopSignals, step: int) -> None:
        super().__init__(stream)
        self._stop, self._step = stop, step

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, StepDone) and event.step == self._step:
            self._stop.notice("says the test", 600.0)


def attempt(config: RunConfig, stop_at: int = 0) -> Attempted:
    """Run one attempt to its end.

    Args:
        config: The run.
        stop_at: Step behind which a stop is requested; 0 = never.
    """
    stream, stop = io.StringIO(), StopSignals()
    with Stopping(stream, stop, stop_at) as console:
        try:
            code, error = run_attempt(config, stop, console), ""
        except IndexTTSJobError as failure:
            code, error = failure.exit_code, str(failure)
    return Attempted(code, stream.getvalue(), error)
