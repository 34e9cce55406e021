"""The record that an attempt writes at its start: `attempts/0002.json` of the run. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from indextts_job.parsing import Count, is_instant, parsed_leniently, plain


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """Process, machine and job of an attempt. A field that was not recorded is empty."""

    started: str = ""
    """When it took its number. UTC, ISO 8601, as `launched`."""
    launched: str = ""
    """When its process began."""
    pid: Count | None = None
    pid_namespace: str = ""
    """Namespace of `pid`, because each container has process numbers of its own."""
    command: str = ""
    node: str = ""
    device: str = ""
    driver: str = ""
    scheduler: Mapping[str, str] = field(default_factory=dict)
    """The scheduler's job as `scheduler.read_scheduler` found it in the environment."""
    previous_end: str = ""
    """End of the attempt before, in words."""
    step: Count = 0
    """The position that it began at."""
    resume: str = ""
    """The setting `resume.source` that it was started with."""
    model: str = ""
    """Version of the model."""
    unique: str = ""
    """What no other attempt has; that of the first one identifies the run, wherever it is moved to."""

    @property
    def chain(self) -> str:
        """The submitted job that the attempt belongs to, the same for all its starts; empty when a person began it."""
        # The mapping comes from a file; a record of another release may lack either key.
        if not {"kind", "chain"} <= self.scheduler.keys():
            return ""
        return f"{self.scheduler['kind']} job {self.scheduler['chain']}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they are stored."""
        document: dict[str, Any] = plain(self)
        return document


def parse_record(content: bytes) -> AttemptRecord:
    """The record of an attempt.

    Fields that cannot be read have their defaults. A damaged record never raises: it is not needed to go on training.
    """
    try:
        document = json.loads(content.decode())
    # JSON that is nested thousands of levels deep ends in a RecursionError, not in a ValueError.
    except (ValueError, RecursionError):
        return AttemptRecord()
    record = parsed_leniently(document, AttemptRecord)
    # Readers compute with these times.
    return replace(
        record,
        started=record.started if is_instant(record.started) else "",
        launched=record.launched if is_instant(record.launched) else "",
        scheduler=record.scheduler or _texts_of_scheduler(document),
    )


def _texts_of_scheduler(document: object) -> dict[str, str]:
    """The entries of `scheduler` that are texts.

    A mapping with one entry of another type is refused as a whole, and that must not hide the others: `Fence.check`
    compares the chain to tell a requeue of the same job from a second job.
    """
    pairs = document.get("scheduler") if isinstance(document, dict) else None
    if not isinstance(pairs, dict):
        return {}
    return {key: value for key, value in pairs.items() if isinstance(key, str) and isinstance(value, str)}
