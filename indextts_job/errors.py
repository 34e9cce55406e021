"""Errors a user can meet, each with the exit code its launcher acts on (I8, sysexits.h).

    IndexTTSJobError        70  unexpected; retried, counts against a limit
    ├── NonFiniteError      70  a loss or gradient is not finite; the weights were not touched
    ├── DeviceMemoryError   70  one sample does not fit the device; another device may have more
    ├── DataError           65  the data or a checkpoint is wrong; never retried
    ├── UnavailableError    69  storage is unreachable or full; retried, counts against a limit
    │   └── StorageFullError 69  no space is left
    ├── StoppedError        75  stopped on request, state is committed; requeued, counts as nothing
    │   └── SupersededError 75  a newer attempt of the same run exists; this one must not write
    ├── AccessRefusedError  77  credentials refused; never retried
    ├── ConfigError         78  the configuration is wrong; never retried
    └── GoalMissedError     79  the run has not come where it should be by now; everything is committed, never retried

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
"""Ours, behind the last of sysexits.h: a rule of the run ended it, and everything is committed."""
EXIT_INTERRUPTED = 130
"""Ctrl+C where nothing is committed for it: twice in a training, once in every other command."""

MAX_FINDINGS_SHOWN = 20


class IndexTTSJobError(Exception):
    """Something went wrong that the user should read about in one message."""

    exit_code: ClassVar[int] = EXIT_SOFTWARE


class DataError(IndexTTSJobError):
    """A dataset, a base checkpoint or a checkpoint holds something that cannot be trained on."""

    exit_code = EXIT_DATA


class GoalMissedError(IndexTTSJobError):
    """A run has not reached what the configuration wants of it by this step; everything is committed."""

    exit_code = EXIT_RULE


class UnavailableError(IndexTTSJobError):
    """Storage could not be reached or could not take what was written."""

    exit_code = EXIT_UNAVAILABLE


class StorageFullError(UnavailableError):
    """No space is left; waiting does not help, freeing space does."""


class StoppedError(IndexTTSJobError):
    """The attempt ended because somebody asked for it; everything worth keeping is committed."""

    exit_code = EXIT_STOPPED


class SupersededError(StoppedError):
    """A newer attempt of this run has started, so this one may not commit any more (I5)."""


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
    """All findings of one kind as one message, the first ones spelled out.

    Args:
        headline: What is wrong, in one clause without a colon.
        findings: One line each: file, line or key, what was found, what was expected.
        advice: What to do about it.

    Returns:
        A message of several lines.
    """
    shown = [f"  {finding}" for finding in findings[:MAX_FINDINGS_SHOWN]]
    hidden = len(findings) - len(shown)
    if hidden:
        shown.append(f"  … and {hidden} more")
    return "\n".join([f"{headline}:", *shown, advice])
