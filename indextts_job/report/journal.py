"""Events as JSON lines in the run: `events/attempt-0001.jsonl`, and on request the samples of every step."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from indextts_job.report.events import AttemptStarted, Event, StepDone, ValidationProgress
from indextts_job.storage.run_storage import RunStorage

EVENTS, SAMPLES = "events", "samples"


class Journal:
    """Appends every event that a person or a program may want later.

    Lines: `{"time": UTC ISO 8601, "event": class name, …its fields}`. A line that a kill cut off is the last one of
    its file.
    """

    def __init__(self, storage: RunStorage, attempt: int) -> None:
        self._storage = storage
        self._key = f"{EVENTS}/attempt-{attempt:04d}.jsonl"

    def __call__(self, event: Event) -> None:
        """Write one event; single steps and progress of a validation are left to other readers."""
        if isinstance(event, (StepDone, ValidationProgress)):
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        document = {"time": now, "event": type(event).__name__, **asdict(event)}
        line = json.dumps(document, ensure_ascii=False, allow_nan=False)
        self._storage.append(self._key, line.encode() + b"\n")


class SampleLog:
    """Appends `{"step": k, "samples": [ids]}` for every applied update; k counts it."""

    def __init__(self, storage: RunStorage, attempt: int, ids: Callable[[int], str]) -> None:
        self._storage = storage
        self._key = f"{SAMPLES}/attempt-{attempt:04d}.jsonl"
        self._ids = ids

    def __call__(self, event: Event) -> None:
        """Write the samples of one step."""
        if isinstance(event, AttemptStarted):
            self._write({"resumed_at": event.step})
        elif isinstance(event, StepDone):
            self._write({"step": event.step, "samples": [self._ids(index) for index in event.samples]})

    def _write(self, document: dict[str, object]) -> None:
        self._storage.append(self._key, json.dumps(document, ensure_ascii=False).encode() + b"\n")


_LOSSES = {"text_loss": float, "mel_loss": float, "mel_top1": float, "total": float}
_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "TrainLine": {
        "epoch": float,
        "losses": _LOSSES,
        "learning_rate": float,
        "samples_per_s": float,
        "tokens_per_s": float,
        "eta_s": float,
    },
    "Validated": {"losses": _LOSSES, "best": bool},
    "Committed": {"name": str, "seconds": float, "stall_seconds": float},
    "AttemptStarted": {"attempt": int, "total_steps": int},
    "TimeSpent": {"steps_s": float, "data_s": float, "validation_s": float, "saves_s": float},
    "AttemptEnded": {"outcome": str, "exit_code": int, "message": str},
}
"""Fields that readers of a journal rely on, by event."""


def parse_events(content: bytes) -> Iterator[dict[str, Any]]:
    """The events of a journal, in their order, as far as they can be read.

    Every event has `time`, `event` and `step`, and those of `_FIELDS` what stands there. A line that is something else
    was cut off by a kill, or damaged, or is another program's; the run is what its checkpoints say, so it is left out.
    """
    for line in content.split(b"\n"):
        try:
            document = json.loads(line.decode())
        except (ValueError, RecursionError):
            continue
        if not isinstance(document, dict):
            continue
        expected = {"time": str, "event": str, "step": int, **_FIELDS.get(str(document.get("event")), {})}
        if _fits(document, expected) and _is_instant(document["time"]):
            yield document


def _fits(document: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    for key, kind in expected.items():
        value = document.get(key)
        if isinstance(kind, Mapping):
            if not isinstance(value, Mapping) or not _fits(value, kind):
                return False
        elif kind is float:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                return False
        elif type(value) is not kind or (isinstance(value, int) and not 0 <= value < 2**63):
            return False
    return True


def _is_instant(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def committed_samples(logs: Sequence[bytes]) -> dict[int, list[str]]:
    """The samples of every step that counts, from the sample logs of all attempts in their order.

    A step that was done, lost to a kill and done again counts once: a log that resumed at step k replaces what
    earlier ones say about steps after k.

    Args:
        logs: Contents of `samples/attempt-*.jsonl`, oldest first.

    Returns:
        Sample ids by step (the number of updates including it).
    """
    steps: dict[int, list[str]] = {}
    for log in logs:
        for line in log.split(b"\n"):
            try:
                entry = json.loads(line.decode())
            except (ValueError, RecursionError):
                continue  # cut off by a kill; the step was not committed then
            if not isinstance(entry, dict):
                continue
            start, step, names = (entry.get(key) for key in ("resumed_at", "step", "samples"))
            if type(start) is int:
                steps = {step: samples for step, samples in steps.items() if step <= start}
            elif type(step) is int and isinstance(names, list) and all(isinstance(name, str) for name in names):
                steps[step] = names
    return steps
