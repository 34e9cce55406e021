"""Whole attempts inside the test's process, for what needs no signal from outside."""

import io
from dataclasses import dataclass

from indextts_job.attempt.run import run_attempt
from indextts_job.config import RunConfig
from indextts_job.errors import IndexTTSJobError
from indextts_job.preemption.signals import StopSignals
from indextts_job.report.console import ConsoleReport


@dataclass(frozen=True, slots=True)
class Attempted:
    """How an attempt ended, and what it printed."""

    code: int
    output: str
    error: str


def attempt(config: RunConfig) -> Attempted:
    """Run one attempt to its end."""
    stream = io.StringIO()
    with ConsoleReport(stream) as console:
        try:
            code, error = run_attempt(config, StopSignals(), console), ""
        except IndexTTSJobError as failure:
            code, error = failure.exit_code, str(failure)
    return Attempted(code, stream.getvalue(), error)
