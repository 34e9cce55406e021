"""Writes the last committed step to a file for the launcher, which counts failures without progress."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from indextts_job.report.events import Committed, Event
from indextts_job.scheduler import PROGRESS_VARIABLE


class ProgressFile:
    """Keeps the step of the newest checkpoint in a local file, as a decimal number."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, event: Event) -> None:
        """Write the step of a checkpoint. A failure to write is ignored: the training does not need the file."""
        if isinstance(event, Committed):
            with contextlib.suppress(OSError):
                self._path.write_text(f"{event.step}\n", encoding="ascii")


def progress_readers(environment: Mapping[str, str]) -> list[ProgressFile]:
    """One reader if a launcher asks for it by an environment variable, otherwise none."""
    # By the environment, not the configuration: it belongs to the launcher and differs from attempt to attempt.
    path = environment.get(PROGRESS_VARIABLE, "")
    return [ProgressFile(Path(path))] if path else []
