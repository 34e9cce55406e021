"""Collects the facts about a run and this machine for a problem report, as one document without secrets."""

import json
import platform
from datetime import UTC, datetime
from typing import Any

import torch

from indextts_job.checkpoint import describe, retention
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.doctor.machine import examine
from indextts_job.errors import IndexTTSJobError
from indextts_job.redaction import redacted, redacted_values
from indextts_job.report.attempts import attempts
from indextts_job.report.goodput import where_time_went
from indextts_job.report.journal import EVENTS
from indextts_job.report.standing import standing
from indextts_job.storage.manifest_text import lines_of
from indextts_job.storage.run_storage import RunStorage
from indextts_job.version import program_version

ATTEMPTS, FIRST_EVENTS, LAST_EVENTS = 3, 50, 50
"""Number of newest attempts in a report, and of events from the start and the end of each."""


def problem_report(storage: RunStorage) -> str:
    """A JSON document about a run, and about this machine."""
    rows = attempts(storage)
    document: dict[str, Any] = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "indextts_job": program_version(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "platform": platform.platform(),
        },
        "machine": [finding.to_json() for finding in examine("")],
        "standing": standing(rows, datetime.now(UTC)).to_json() if rows else {},
        "spent_seconds": where_time_went(rows),
        "attempts": [row.to_json() for row in rows],
        "newest_checkpoint": _newest(CheckpointStore(storage)),
        "events": {str(row.number): _events(storage, row.number) for row in rows[-ATTEMPTS:]},
    }
    # Values first, because a secret may be escaped inside JSON. Then the whole text, for keys and for JSON in strings.
    plain = redacted_values(json.loads(json.dumps(document, default=str)))
    text = redacted(json.dumps(plain, indent=1, ensure_ascii=False))
    return text.encode("utf-8", "replace").decode()  # half of a surrogate pair has no encoding


def _newest(store: CheckpointStore) -> dict[str, Any]:
    names = retention.current(store.names())
    if not names:
        return {}
    try:
        return describe.details(store.manifest(names[0]))
    except IndexTTSJobError as error:
        # The report is for runs with problems, so a damaged checkpoint belongs into it.
        return {"unreadable": str(error)}


def _events(storage: RunStorage, attempt: int) -> list[str]:
    try:
        lines = lines_of(storage.read(f"{EVENTS}/attempt-{attempt:04d}.jsonl").decode(errors="replace"))
    except FileNotFoundError:
        return []
    if len(lines) <= FIRST_EVENTS + LAST_EVENTS:
        return lines
    left_out = f"… {len(lines) - FIRST_EVENTS - LAST_EVENTS} lines left out …"
    return [*lines[:FIRST_EVENTS], left_out, *lines[-LAST_EVENTS:]]
