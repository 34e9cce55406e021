"""A job as a value, and what a launcher does with an exit code."""

import signal
from dataclasses import dataclass
from typing import Literal

from indextts_job.errors import EXIT_CONFIG, EXIT_DATA, EXIT_OK, EXIT_REFUSED, EXIT_STOPPED

FINAL_CODES = (EXIT_OK, EXIT_DATA, EXIT_REFUSED, EXIT_CONFIG)
"""Complete, or wrong in a way that a retry cannot mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to run, and how stubbornly."""

    arguments: tuple[str, ...] = ("run.yaml",)
    """Arguments of `indextts-job train`: a configuration (path or URL) and settings."""
    name: str = "indextts"
    image: str = ""
    """Container image; empty where the launcher may use an installed `indextts-job`."""
    nodes: int = 1
    gpus: int = 1
    """Per node; the trainer starts a process for each."""
    cpus: int = 8
    memory_gib: int = 64
    grace_seconds: int = 60
    """From a stop signal to the kill."""
    max_failures: int = 3
    """Failures in a row without a new checkpoint after which the job is given up."""


def decide(exit_code: int, failures: int, max_failures: int) -> Literal["end", "restart", "retry"]:
    """What to do after an attempt ended.

    Args:
        exit_code: Of the trainer, as a shell would report it.
        failures: Failures so far, this one included if it was one.
        max_failures: How many are tolerated.

    Returns:
        `restart` after a stop that committed everything, `retry` after a failure worth another try, else `end`.
    """
    if exit_code in FINAL_CODES:
        return "end"
    if exit_code == EXIT_STOPPED:
        return "restart"
    return "retry" if failures <= max_failures else "end"


def shell_code(return_code: int) -> int:
    """Exit code as a shell reports it: 128 + signal for a process that a signal ended."""
    return 128 - return_code if return_code < 0 else return_code


def describe(exit_code: int) -> str:
    """An exit code in words."""
    known = {
        0: "complete",
        65: "the data is wrong",
        69: "storage unavailable",
        70: "unexpected error",
        75: "stopped on request, everything committed",
        77: "access refused",
        78: "the configuration is wrong",
    }
    if exit_code in known:
        return known[exit_code]
    if exit_code > 128:
        return f"killed by {signal.Signals(exit_code - 128).name}"
    return "failed"
