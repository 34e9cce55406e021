"""What an attempt writes down about itself as it begins: `attempts/0002.json` of the run. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from indextts_job.parsing import Count, parsed_leniently, plain


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """Who wrote into the run, from when on, and where. A field that was not recorded is empty."""

    started: str = ""
    """When it took its number. UTC, ISO 8601, as `launched`."""
    launched: str = ""
    """When its process began."""
    pid: Count | None = None
    pid_namespace: str = ""
    """Where `pid` counts: containers have numbers of their own."""
    command: str = ""
    node: str = ""
    device: str = ""
    driver: str = ""
    scheduler: Mapping[str, str] = field(default_factory=dict)
    """What `scheduler.read_scheduler` found in the environment."""
    previous_end: str = ""
    """How the attempt before it ended, for people."""
    step: Count = 0
    """The position that it began at."""
    resume: str = ""
    """What it was asked to go on from."""

    @property
    def chain(self) -> str:
        """The submitted job that the attempt belongs to, the same for all its starts; empty when a person began it."""
        if not {"kind", "chain"} <= self.scheduler.keys():
            return ""
        return f"{self.scheduler['kind']} job {self.scheduler['chain']}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they are stored."""
        document: dict[str, Any] = plain(self)
        return document


def parse_record(content: bytes) -> AttemptRecord:
    """The record of an attempt, as far as it can be read: a damaged one says nothing, and is no reason to stop."""
    try:
        document = json.loads(content.decode())
    except (ValueError, RecursionError):
        return AttemptRecord()
    record = parsed_leniently(document, AttemptRecord)
    pairs = document.get("scheduler") if isinstance(document, dict) else None
    if record.scheduler or not isinstance(pairs, dict):
        return record
    # One odd entry does not hide the others: the chain decides who may go on.
    texts = {key: value for key, value in pairs.items() if isinstance(key, str) and isinstance(value, str)}
    return replace(record, scheduler=texts)
