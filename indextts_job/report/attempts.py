"""The attempts of a run, from their records and journals: where each ran, how far it came, how it ended."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from indextts_job.checkpoint.fence import FOLDER, parse_record
from indextts_job.errors import IndexTTSJobError
from indextts_job.report.journal import EVENTS, parse_events
from indextts_job.storage.run_storage import RunStorage

READERS = 16
LAST_OF = {"TrainLine": "train", "Validated": "validation", "Committed": "checkpoint"}
"""Events of which the last one is kept, and under what name."""
CURVES = {"TrainLine": "train_lines", "Validated": "validations"}
"""Events that make curves."""


def attempts(storage: RunStorage, *, curves: bool = False) -> list[dict[str, Any]]:
    """One row per attempt, oldest first: its record, and what its journal adds.

    Args:
        storage: The run.
        curves: Also add every train line and validation, as `train_lines` and `validations`.

    Returns:
        The record of each attempt with `attempt`, `from_step`, `committed_step` (of its last checkpoint), `last_step`
        (the last one it told of), `ended` (UTC time), `outcome` and `exit_code`; the last three empty while it runs or
        when it was killed. Of its last events: `train` (TrainLine), `validation` (Validated), `checkpoint` (Committed),
        `total_steps`, `heard` (UTC time of anything), `trained` (of the first step) and `spent` (every TimeSpent).
    """
    names = _names(storage)
    journals = storage.list(EVENTS)
    with ThreadPoolExecutor(READERS) as pool:
        return list(
            pool.map(
                lambda name: _row(storage, name, f"attempt-{name.removesuffix('.json')}.jsonl" in journals, curves),
                names,
            )
        )


def _names(storage: RunStorage) -> list[str]:
    """Files of the records, oldest first; what has another name is no record."""
    numbered = [name for name in storage.list(FOLDER) if name.removesuffix(".json").isdecimal()]
    return sorted(numbered, key=lambda name: int(name.removesuffix(".json")))


def _row(storage: RunStorage, name: str, has_journal: bool, curves: bool) -> dict[str, Any]:  # noqa: FBT001
    record = parse_record(_side_record(storage, f"{FOLDER}/{name}"))
    number = name.removesuffix(".json")
    row = {
        "attempt": int(number),
        "node": "",
        "device": "",
        "started": "",
        **record,
        "from_step": record.get("step", 0),
        "committed_step": None,
        "last_step": record.get("step", 0),
        "ended": "",
        "outcome": "",
        "exit_code": None,
        "total_steps": None,
        "trained": "",
        "spent": [],
        "heard": record.get("started", ""),
        **dict.fromkeys(LAST_OF.values()),
        **({name: [] for name in CURVES.values()} if curves else {}),
    }
    content = _side_record(storage, f"{EVENTS}/attempt-{number}.jsonl") if has_journal else b""
    for event in parse_events(content):
        row["last_step"] = max(row["last_step"], event["step"])
        row["heard"] = event["time"]
        if event["event"] in LAST_OF:
            row[LAST_OF[event["event"]]] = event
        if curves and event["event"] in CURVES:
            row[CURVES[event["event"]]].append(event)
        if event["event"] == "Committed":
            row["committed_step"] = event["step"]
        elif event["event"] == "AttemptStarted":
            row |= {"total_steps": event["total_steps"], "trained": event["time"]}
        elif event["event"] == "TimeSpent":
            row["spent"].append(event)
        elif event["event"] == "AttemptEnded":
            row |= {"ended": event["time"], "outcome": event["outcome"], "exit_code": event["exit_code"]}
    return row


def _side_record(storage: RunStorage, key: str) -> bytes:
    """A file that only tells about the run: one that cannot be read tells nothing."""
    try:
        return storage.read(key)
    except (FileNotFoundError, IndexTTSJobError):
        return b""


def previous_end(storage: RunStorage) -> str:
    """How the newest attempt ended, as its own journal tells it; empty when there was none."""
    names = _names(storage)
    if not names:
        return ""
    number = names[-1].removesuffix(".json")
    told = list(parse_events(_side_record(storage, f"{EVENTS}/attempt-{number}.jsonl")))
    last = told[-1] if told else {}
    if last.get("event") != "AttemptEnded":
        return "killed: it wrote no end"
    return f"{last['outcome']}, exit code {last['exit_code']}" + (f": {last['message']}" if last["message"] else "")


def scheduler_text(scheduler: dict[str, str]) -> str:
    """Who started an attempt, in a few words."""
    if not {"kind", "chain"} <= scheduler.keys():
        return ""
    task = f"_{scheduler['task']}" if scheduler.get("task") else ""
    restarts = scheduler.get("restarts", "0")
    return f"{scheduler['kind']} {scheduler['chain']}{task}" + (f", restart {restarts}" if restarts != "0" else "")
