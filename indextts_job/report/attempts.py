"""Reads the attempts of a run from their records and journals: machine, progress and end of each."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from indextts_job.checkpoint.attempt_record import AttemptRecord, parse_record
from indextts_job.checkpoint.fence import FOLDER
from indextts_job.errors import IndexTTSJobError
from indextts_job.report.events import (
    MEMORY,
    AttemptEnded,
    AttemptStarted,
    Committed,
    Event,
    Notice,
    Spoke,
    TimeSpent,
    TrainLine,
    Validated,
)
from indextts_job.report.journal import EVENTS, Logged, parse_events
from indextts_job.storage.run_storage import RunStorage

READERS = 16
"""Files that are read at a time: a run on spot machines has hundreds of attempts, and each read is a round trip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt: its record, and values from its journal. Times are UTC, ISO 8601; empty = not known."""

    number: int
    record: AttemptRecord = field(default_factory=AttemptRecord)
    last_step: int = 0
    """The last step in its journal."""
    heard: str = ""
    """Time of its last event."""
    trained: str = ""
    """Start of its training."""
    total_steps: int | None = None
    committed_step: int | None = None
    """Step of its last checkpoint."""
    train: Logged[TrainLine] | None = None
    """The last train line."""
    validation: Logged[Validated] | None = None
    """The last validation."""
    speaking: Logged[Spoke] | None = None
    """The last check in which the model spoke."""
    checkpoint: Logged[Committed] | None = None
    """The last checkpoint."""
    spent: tuple[Logged[TimeSpent], ...] = ()
    """All sums of its time, one for each save and one at the end."""
    out_of_memory: int = 0
    """How often it did something again in smaller pieces, because the device had too little memory."""
    ended: str = ""
    """Time of its end; empty while it runs, and after a kill."""
    outcome: str = ""
    """Its end: `complete`, `stopped` or `failed`; empty while it runs, and after a kill."""
    exit_code: int | None = None
    message: str = ""
    """What it said at its end."""
    train_lines: tuple[Logged[TrainLine], ...] = ()
    """All train lines; empty unless `curves` was asked for."""
    validations: tuple[Logged[Validated], ...] = ()
    """All validations; empty unless `curves` was asked for."""
    speeches: tuple[Logged[Spoke], ...] = ()
    """All checks in which the model spoke; empty unless `curves` was asked for."""

    @property
    def from_step(self) -> int:
        """The position that it began at."""
        return self.record.step

    @property
    def launched(self) -> str:
        """Start of its process; empty for attempts of older releases."""
        return self.record.launched

    @property
    def ran_s(self) -> float:
        """Seconds from its launch to its end, as far as it told; 0 where the launch is not known."""
        # Clocks of two machines may disagree, and a damaged record may say anything.
        return max(0.0, seconds_between(self.launched, self.end_or_heard)) if self.launched else 0.0

    @property
    def end_or_heard(self) -> str:
        """Time of its end, or of its last event."""
        return self.ended or self.heard

    def to_json(self) -> dict[str, Any]:
        """One row of `status --json`."""
        return {
            "attempt": self.number,
            **self.record.to_json(),
            "from_step": self.from_step,
            "committed_step": self.committed_step,
            "last_step": self.last_step,
            "ended": self.ended,
            "outcome": self.outcome,
            "exit_code": self.exit_code,
            "total_steps": self.total_steps,
            "trained": self.trained,
            "spent": [one.to_json() for one in self.spent],
            "heard": self.heard,
            "out_of_memory": self.out_of_memory,
            "train": self.train.to_json() if self.train else None,
            "validation": self.validation.to_json() if self.validation else None,
            "speaking": self.speaking.to_json() if self.speaking else None,
            "checkpoint": self.checkpoint.to_json() if self.checkpoint else None,
        }


def attempts(storage: RunStorage, *, curves: bool = False) -> list[Attempt]:
    """All attempts of a run, oldest first.

    Args:
        curves: Keep all train lines and validations, not only the last ones.
    """
    numbers, journals = _numbers(storage), storage.list(EVENTS)

    def read(number: str) -> Attempt:
        record = parse_record(_side_record(storage, f"{FOLDER}/{number}.json"))
        # By the listing: an attempt that was killed early has no journal, and a read that fails is retried for a while.
        events = _events(storage, number) if _journal(number) in journals else ()
        return _with_events(
            Attempt(number=int(number), record=record, last_step=record.step, heard=record.started or record.launched),
            events,
            curves=curves,
        )

    # In the order of the numbers: `map` keeps it whatever read ends first.
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(read, numbers))


def _numbers(storage: RunStorage) -> list[str]:
    """Numbers of the attempts as their file names spell them, oldest first; other files are left out."""
    names = [name.removesuffix(".json") for name in storage.list(FOLDER)]
    # As numbers: beyond 9999 the order of the names is another one.
    return sorted((name for name in names if name.isdecimal()), key=int)


def _journal(number: str) -> str:
    return f"attempt-{number}.jsonl"


def _events(storage: RunStorage, number: str) -> Iterable[Logged[Event]]:
    return parse_events(_side_record(storage, f"{EVENTS}/{_journal(number)}"))


def _with_events(attempt: Attempt, events: Iterable[Logged[Event]], *, curves: bool) -> Attempt:
    """An attempt with the values from its journal."""
    told: dict[type[Event], list[Any]] = defaultdict(list)
    for logged in events:
        told[type(logged.event)].append(logged)
        attempt = replace(attempt, last_step=max(attempt.last_step, logged.event.step), heard=logged.time)
    train, validations, checkpoints = told[TrainLine], told[Validated], told[Committed]
    attempt = replace(
        attempt,
        train=_last(train),
        validation=_last(validations),
        speaking=_last(told[Spoke]),
        checkpoint=_last(checkpoints),
        committed_step=checkpoints[-1].event.step if checkpoints else None,
        spent=tuple(told[TimeSpent]),
        out_of_memory=sum(one.event.topic == MEMORY and one.event.warning for one in told[Notice]),
        train_lines=tuple(train) if curves else (),
        validations=tuple(validations) if curves else (),
        speeches=tuple(told[Spoke]) if curves else (),
    )
    return _with_end(_with_begin(attempt, _last(told[AttemptStarted])), _last(told[AttemptEnded]))


def _last(logged: Sequence[Any]) -> Any:  # noqa: ANN401  # of the type that it is given
    return logged[-1] if logged else None


def _with_begin(attempt: Attempt, began: Logged[AttemptStarted] | None) -> Attempt:
    # A kill before the first step leaves a journal without this event.
    if began is None:
        return attempt
    return replace(attempt, total_steps=began.event.total_steps, trained=began.time)


def _with_end(attempt: Attempt, ended: Logged[AttemptEnded] | None) -> Attempt:
    if ended is None:
        return attempt
    end = ended.event
    return replace(attempt, ended=ended.time, outcome=end.outcome, exit_code=end.exit_code, message=end.message)


def _side_record(storage: RunStorage, key: str) -> bytes:
    """The content of a side record; empty when it cannot be read, because nothing depends on it."""
    try:
        return storage.read(key)
    except (FileNotFoundError, IndexTTSJobError):
        return b""


def previous_end(storage: RunStorage) -> str:
    """The end of the newest attempt by its journal, in words; empty when there is no attempt."""
    numbers = _numbers(storage)
    if not numbers:
        return ""
    told = list(_events(storage, numbers[-1]))
    last = told[-1].event if told else None
    if not isinstance(last, AttemptEnded):
        # Every other end writes an event, so its absence is the sign of a kill.
        return "killed: it wrote no end"
    return f"{last.outcome}, exit code {last.exit_code}" + (f": {last.message}" if last.message else "")


def scheduler_text(record: AttemptRecord) -> str:
    """The job that started an attempt, in a few words; empty when a person did."""
    scheduler = record.scheduler
    if not {"kind", "chain"} <= scheduler.keys():
        return ""
    # As squeue and sacct write it: job_task.
    task = f"_{scheduler['task']}" if scheduler.get("task") else ""
    restarts = scheduler.get("restarts", "0")
    return f"{scheduler['kind']} {scheduler['chain']}{task}" + (f", restart {restarts}" if restarts != "0" else "")


def total_steps(rows: Sequence[Attempt]) -> int | None:
    """Updates of the whole run, by the last attempt that trained."""
    # An attempt that was killed during its start has recorded none; and a run may have been prolonged since.
    return next((row.total_steps for row in reversed(rows) if row.total_steps), None)


def seconds_between(begin: str, end: str) -> float:
    """Seconds from one time to another, both in ISO 8601."""
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()
