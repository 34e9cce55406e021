"""A job as a value, and what a launcher does with an exit code."""

import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from indextts_job.errors import EXIT_CONFIG, EXIT_DATA, EXIT_OK, EXIT_REFUSED, EXIT_RULE, EXIT_STOPPED, ConfigError

FINAL_CODES = (EXIT_OK, EXIT_DATA, EXIT_REFUSED, EXIT_CONFIG, EXIT_RULE)
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

    def __post_init__(self) -> None:
        """Refuse numbers that no scheduler can fulfil.

        Raises:
            ConfigError: Naming the option.
        """
        least = {"nodes": 1, "gpus": 0, "cpus": 1, "memory_gib": 1, "grace_seconds": 1, "max_failures": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value < smallest:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: expected at least {smallest}.")


@dataclass(frozen=True, slots=True)
class Failures:
    """Failures of a job, counted anew whenever the run has got further."""

    in_a_row: int = 0
    step: int = 0
    """Of the newest checkpoint that any attempt has told of."""

    def after(self, exit_code: int, step: int) -> Self:
        """The count after one more attempt.

        Args:
            exit_code: Of the trainer.
            step: Of its newest checkpoint; 0 if it committed none.
        """
        further = step > self.step
        failed = exit_code not in (EXIT_OK, EXIT_STOPPED)
        before = 0 if further or not failed else self.in_a_row
        return replace(self, in_a_row=before + failed, step=max(step, self.step))


def read_progress(path: Path) -> int:
    """The step that a trainer has left in its progress file; 0 where it left none."""
    try:
        return int(path.read_bytes()[:32])
    except (OSError, ValueError):
        return 0


def decide(exit_code: int, failures: int, max_failures: int) -> Literal["end", "restart", "retry"]:
    """What to do after an attempt ended.

    Args:
        exit_code: Of the trainer, as a shell would report it.
        failures: In a row without a new checkpoint, this one included if it was one.
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
        79: "a rule of the run ended it, everything committed",
    }
    if exit_code in known:
        return known[exit_code]
    try:
        return f"killed by {signal.Signals(exit_code - 128).name}"
    except ValueError:  # 255 is what a rebooted node leaves, and 128 + 127 is no signal
        return "failed"
