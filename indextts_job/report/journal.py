"""Events as JSON lines in the run: `events/attempt-0001.jsonl`, and on request the samples of every step."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from indextts_job.checkpoint.storage import RunStorage
from indextts_job.report.events import AttemptStarted, Event, StepDone, ValidationProgress

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
        for line in log.decode().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # cut off by a kill; the step was not committed then
            if "resumed_at" in entry:
                steps = {step: samples for step, samples in steps.items() if step <= entry["resumed_at"]}
            else:
                steps[entry["step"]] = entry["samples"]
    return steps
