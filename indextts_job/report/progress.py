"""How far an attempt has committed, in a file for the launcher that started it: it counts failures without progress."""

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
        """Note a checkpoint. A file that cannot be written is no reason to end a training."""
        if isinstance(event, Committed):
            with contextlib.suppress(OSError):
                self._path.write_text(f"{event.step}\n", encoding="ascii")


def progress_readers(environment: Mapping[str, str]) -> list[ProgressFile]:
    """One reader where a launcher asks for it, else none.

    Args:
        environment: Of the process.
    """
    path = environment.get(PROGRESS_VARIABLE, "")
    return [ProgressFile(Path(path))] if path else []
