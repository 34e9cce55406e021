"""Writes and reads events as JSON lines in the run: `events/attempt-0001.jsonl`, and the optional sample log."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from indextts_job.parsing import is_instant, parsed, plain
from indextts_job.report.events import AttemptStarted, Event, StepDone, ValidationProgress
from indextts_job.storage.run_storage import RunStorage

EVENTS, SAMPLES = "events", "samples"
E_co = TypeVar("E_co", bound=Event, covariant=True)


class Journal:
    """Appends the events of an attempt, except single steps and the progress of validations.

    Lines: `{"time": UTC ISO 8601, "event": class name, …its fields}`. A line that a kill cut off is the last one of
    its file.
    """

    def __init__(self, storage: RunStorage, attempt: int) -> None:
        self._storage = storage
        # A file per attempt: each file has one writer, also while an older attempt is still ending.
        self._key = f"{EVENTS}/attempt-{attempt:04d}.jsonl"

    def __call__(self, event: Event) -> None:
        """Write one event."""
        if isinstance(event, (StepDone, ValidationProgress)):
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        document = {"time": now, "event": type(event).__name__, **asdict(event)}
        # No NaN: programs in other languages read these lines, and their JSON parsers refuse it.
        line = json.dumps(document, ensure_ascii=False, allow_nan=False)
        self._storage.append(self._key, line.encode() + b"\n")


class SampleLog:
    """Appends `{"step": k, "samples": [ids]}` for every applied update; k counts it."""

    def __init__(self, storage: RunStorage, attempt: int, ids: Callable[[int], str]) -> None:
        self._storage = storage
        self._key = f"{SAMPLES}/attempt-{attempt:04d}.jsonl"
        self._ids = ids

    def __call__(self, event: Event) -> None:
        """Write the samples of one step; first of all the step that the attempt resumed at."""
        if isinstance(event, AttemptStarted):
            self._write({"resumed_at": event.step})
        elif isinstance(event, StepDone):
            self._write({"step": event.step, "samples": [self._ids(index) for index in event.samples]})

    def _write(self, document: dict[str, object]) -> None:
        self._storage.append(self._key, json.dumps(document, ensure_ascii=False).encode() + b"\n")


@dataclass(frozen=True, slots=True)
class Logged(Generic[E_co]):
    """An event with its time, as a journal holds it."""

    time: str
    """UTC, ISO 8601."""
    event: E_co

    def to_json(self) -> dict[str, Any]:
        """The line of the journal."""
        return {"time": self.time, "event": type(self.event).__name__, **plain(self.event)}


_EVENTS: Mapping[str, type[Event]] = {kind.__name__: kind for kind in Event.__subclasses__()}


def parse_events(content: bytes) -> Iterator[Logged[Event]]:
    """The events of a journal, in their order, as far as they can be read.

    Other lines are left out: a kill has cut them, they are damaged, or another release wrote them. No state of the run
    depends on them, because that is in the checkpoints.
    """
    for line in content.split(b"\n"):
        try:
            document = json.loads(line.decode())
            yield _logged(document)
        except (ValueError, RecursionError):
            continue


def _logged(document: object) -> Logged[Event]:
    """One event. An event of a class that this release does not know becomes an `Event` with its step.

    Raises:
        ValueError: The document is no event.
    """
    if not isinstance(document, Mapping) or not is_instant(document.get("time")):
        raise ValueError("not a line of a journal")
    # A newer release may have more kinds of events; their step and time still tell that the attempt was alive.
    kind = _EVENTS.get(str(document.get("event")), Event)
    event = parsed(document, kind, "event")
    if not all(math.isfinite(number) for number in _numbers(plain(event))):
        raise ValueError("a number that is not finite")
    return Logged(document["time"], event)


def _numbers(value: object) -> Iterator[float]:
    """Every float in plain values; `json.loads` takes NaN and Infinity, which we never write."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _numbers(entry)


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
        for entry in _sample_lines(log):
            if isinstance(entry, _Resumed):
                # Later steps were done again from here; their old samples did not count.
                steps = {step: samples for step, samples in steps.items() if step <= entry.resumed_at}
            else:
                steps[entry.step] = list(entry.samples)
    return steps


@dataclass(frozen=True, slots=True)
class _Resumed:
    """The first line of a sample log."""

    resumed_at: int


@dataclass(frozen=True, slots=True)
class _Used:
    """Any other line of a sample log."""

    step: int
    samples: tuple[str, ...]


def _sample_lines(log: bytes) -> Iterator[_Resumed | _Used]:
    """Lines of a sample log. A line that a kill has cut is left out.

    Logs are durable before a commit, so the step of such a line was not committed.
    """
    for line in log.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            document = json.loads(line.decode())
            # Not `isinstance`: `true` is an int in Python, but no step.
            if isinstance(document, Mapping) and type(document.get("resumed_at")) is int:
                yield parsed(document, _Resumed, "line")
            else:
                yield parsed(document, _Used, "line")
