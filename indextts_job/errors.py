"""The errors that a user may see, each with the exit code that a launcher acts on (I8, sysexits.h).

    IndexTTSJobError        70  unexpected; retried, counts against a limit
    ├── NonFiniteError      70  a loss or gradient is not finite; the weights were not touched
    ├── DeviceMemoryError   70  one sample does not fit the device; another device may have more
    ├── DataError           65  the data or a checkpoint is wrong; never retried
    ├── UnavailableError    69  storage is unreachable or full; retried, counts against a limit
    │   └── StorageFullError 69  no space is left
    ├── StoppedError        75  stopped on request, state is committed; requeued, does not count as a failure
    │   └── SupersededError 75  a newer attempt of the same run exists; this one must not write
    ├── AccessRefusedError  77  credentials refused; never retried
    ├── ConfigError         78  the configuration is wrong; never retried
    └── GoalMissedError     79  the run missed a goal of its configuration; everything is committed, never retried

A message says what was found, where, what was expected and what to do. The command line prints it without a
traceback.
"""

from collections.abc import Sequence
from typing import ClassVar

EXIT_OK = 0
EXIT_DATA = 65
EXIT_UNAVAILABLE = 69
EXIT_SOFTWARE = 70
EXIT_STOPPED = 75
EXIT_REFUSED = 77
EXIT_CONFIG = 78
EXIT_RULE = 79
"""A rule of the run ended it, and everything is committed. Our own code: sysexits.h ends at 78."""
EXIT_INTERRUPTED = 130
"""Ended by Ctrl+C without a commit: pressed twice in a training, or once in another command. 128 + SIGINT."""

MAX_FINDINGS_SHOWN = 20


class IndexTTSJobError(Exception):
    """An error with a message for the user, which is printed without a traceback."""

    exit_code: ClassVar[int] = EXIT_SOFTWARE


class DataError(IndexTTSJobError):
    """A dataset, a base checkpoint or a checkpoint cannot be trained on."""

    exit_code = EXIT_DATA


class GoalMissedError(IndexTTSJobError):
    """A run has not reached a goal of its configuration by the step given there; everything is committed."""

    exit_code = EXIT_RULE


class UnavailableError(IndexTTSJobError):
    """Storage could not be reached, or a write to it failed."""

    exit_code = EXIT_UNAVAILABLE


class StorageFullError(UnavailableError):
    """No space is left; waiting does not help, freeing space does."""


class StoppedError(IndexTTSJobError):
    """The attempt ended because a stop was requested; everything is committed."""

    exit_code = EXIT_STOPPED


class SupersededError(StoppedError):
    """A newer attempt of this run has started, so this one may no longer commit (I5)."""


class AccessRefusedError(IndexTTSJobError):
    """The storage refused the credentials."""

    exit_code = EXIT_REFUSED


class NonFiniteError(IndexTTSJobError):
    """A loss or gradient is NaN or infinite; the weights were not touched."""


class DeviceMemoryError(IndexTTSJobError):
    """The device has too little memory for a single sample."""


class ConfigError(IndexTTSJobError):
    """The configuration, the command line or the combination with an existing run is wrong."""

    exit_code = EXIT_CONFIG


def findings_message(headline: str, findings: Sequence[str], advice: str) -> str:
    """One message with several findings of the same kind; at most `MAX_FINDINGS_SHOWN` are listed.

    Args:
        headline: What is wrong, in one clause without a colon.
        findings: A line each: file, line or key, what was found, what was expected.
        advice: What the user should do.

    Returns:
        A message of several lines.
    """
    shown = [f"  {finding}" for finding in findings[:MAX_FINDINGS_SHOWN]]
    hidden = len(findings) - len(shown)
    if hidden:
        shown.append(f"  … and {hidden} more")
    return "\n".join([f"{headline}:", *shown, advice])
