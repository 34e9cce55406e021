"""A job as a value, and what a launcher does with an exit code."""

import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self, get_args

from indextts_job.errors import EXIT_CONFIG, EXIT_DATA, EXIT_OK, EXIT_REFUSED, EXIT_RULE, EXIT_STOPPED, ConfigError

FINAL_CODES = (EXIT_OK, EXIT_DATA, EXIT_REFUSED, EXIT_CONFIG, EXIT_RULE)
"""The run is complete, or another attempt would fail in the same way."""
Command = Literal["train", "prepare"]
COMMANDS: tuple[Command, ...] = get_args(Command)
PROGRESS_BYTES = 32
"""A step has at most 19 digits; the rest of a longer file is no step and is not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to run, on which resources, and how many failures are tolerated."""

    arguments: tuple[str, ...] = ("run.yaml",)
    """Arguments of the command: a configuration (path or URL) and settings."""
    command: Command = "train"
    """The command of `indextts-job` to run."""
    workers: int = 1
    """Processes that share a preparation, each with resources and restarts of its own; a training is one."""
    name: str = "indextts"
    image: str = ""
    """Container image; empty where the launcher uses an installed `indextts-job`."""
    nodes: int = 1
    gpus: int = 1
    """GPUs per node; the trainer starts one process for each."""
    cpus: int = 8
    """CPUs per node."""
    memory_gib: int = 64
    """Memory per node."""
    grace_seconds: int = 60
    """Time from a stop signal to the kill."""
    max_failures: int = 3
    """Failures in a row without a new checkpoint after which the launcher stops trying."""

    def __post_init__(self) -> None:
        """Refuse numbers that no scheduler can fulfil.

        Raises:
            ConfigError: A number is too small; the message names its option.
        """
        # gpus=0 trains on CPUs, and max_failures=0 ends the job at the first failure.
        least = {"nodes": 1, "gpus": 0, "cpus": 1, "memory_gib": 1, "grace_seconds": 1, "max_failures": 0, "workers": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value < smallest:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: expected at least {smallest}.")
        if self.command == "train" and self.workers > 1:
            raise ConfigError(
                f"--workers {self.workers}: a training has --nodes and --gpus. Workers share a preparation."
            )
        if self.command == "prepare" and self.nodes > 1:
            raise ConfigError(f"--nodes {self.nodes}: the workers of a preparation are independent. Give --workers.")


@dataclass(frozen=True, slots=True)
class Failures:
    """Number of failures in a row; a new checkpoint starts the count again."""

    in_a_row: int = 0
    step: int = 0
    """Step of the newest checkpoint that any attempt has reported."""

    def after(self, exit_code: int, step: int) -> Self:
        """The count after one more attempt.

        Args:
            exit_code: Exit code of the trainer, as a shell reports it.
            step: Step of its newest checkpoint; 0 if it committed none.
        """
        # A job that crashes once a day but trains in between must not use up its failures.
        further = step > self.step
        failed = exit_code not in (EXIT_OK, EXIT_STOPPED)
        before = 0 if further or not failed else self.in_a_row
        return replace(self, in_a_row=before + failed, step=max(step, self.step))


def read_progress(path: Path) -> int:
    """The step in a trainer's progress file; 0 if there is no readable one."""
    try:
        return int(path.read_bytes()[:PROGRESS_BYTES])
    except (OSError, ValueError):
        # No progress is the careful answer: the failure then counts, and the job cannot restart for ever.
        return 0


def decide(exit_code: int, failures: int, max_failures: int) -> Literal["end", "restart", "retry"]:
    """What to do after an attempt ended.

    Args:
        exit_code: Exit code of the trainer, as a shell reports it.
        failures: Failures in a row without a new checkpoint; the attempt that just ended is included.
        max_failures: Number of failures in a row that are tolerated.

    Returns:
        `restart` after a stop that committed everything, `retry` after a failure that another attempt may not have,
        otherwise `end`.
    """
    if exit_code in FINAL_CODES:
        return "end"
    if exit_code == EXIT_STOPPED:
        return "restart"
    return "retry" if failures <= max_failures else "end"


def error_line(output: str) -> str:
    """The last line of a trainer's output that begins with `error:`; empty if there is none."""
    return next((line for line in reversed(output.splitlines()) if line.startswith("error:")), "")


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
        255: "its node restarted, or the container could not start",  # the trainer never ends with it
    }
    if exit_code in known:
        return known[exit_code]
    try:
        return f"killed by {signal.Signals(exit_code - 128).name}"
    except ValueError:
        return "failed"
