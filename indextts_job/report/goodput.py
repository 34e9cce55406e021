"""Goodput: the share of wall time that went into steps that count, and where the rest went. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

Row = Mapping[str, Any]
PARTS = ("steps", "not committed", "waiting", "start-up", "data", "validation", "saves", "lost")
"""`steps` is the goodput; `not committed` is what the newest attempt has done since its last account: a kill would take
it back; `waiting` is between attempts: queue, and what a killed one did after it was last heard of; `lost` is what was
done and had to be done again, and whatever else is not accounted for."""


def where_time_went(rows: Sequence[Row]) -> dict[str, float]:
    """Seconds by part, from the launch of the first attempt to what was heard last.

    Args:
        rows: Of `attempts`, oldest first. Attempts of older versions, which did not account for their time, are left
            out.
    """
    rows = [row for row in rows if row.get("launched") and row["trained"]]
    spent = dict.fromkeys(PARTS, 0.0)
    for index, row in enumerate(rows):
        following = rows[index + 1] if index + 1 < len(rows) else None
        account = _account(row, following)
        for part in ("steps", "data", "validation", "saves"):
            spent[part] += account.get(f"{part}_s", 0.0)
        start_up_s = seconds_between(row["launched"], row["trained"])
        spent["start-up"] += start_up_s
        known_s = start_up_s + sum(account.get(f"{part}_s", 0.0) for part in ("steps", "data", "validation", "saves"))
        end = row["ended"] or row["heard"]
        rest = "not committed" if following is None and not row["ended"] else "lost"
        spent[rest] += max(0.0, seconds_between(row["launched"], end) - known_s)
        if following and row.get("outcome") != "complete":  # nobody waits for a run that is complete
            spent["waiting"] += max(0.0, seconds_between(end, following["launched"]))
    return spent


def kills(rows: Sequence[Row]) -> tuple[int, float]:
    """How many attempts ended without a word, and the seconds that all of them ran.

    Args:
        rows: Of `attempts`, without one that still runs.
    """
    known = [row for row in rows if row.get("launched")]
    ran_s = sum(max(0.0, seconds_between(row["launched"], row["ended"] or row["heard"])) for row in known)
    return sum(not row["outcome"] for row in known), ran_s


def goodput_text(rows: Sequence[Row]) -> str:
    """In one line; empty when nothing is known."""
    spent = where_time_went(rows)
    total_s = sum(spent.values())
    if not total_s:
        return ""
    rest = ", ".join(f"{part} {spent[part] / total_s:.1%}" for part in PARTS[1:] if spent[part] / total_s >= 0.0005)
    return f"{spent['steps'] / total_s:.1%} in steps that count; {rest}"


def _account(row: Row, following: Row | None) -> Mapping[str, float]:
    """What an attempt had spent at the step that the next one went on from, or at its end."""
    counted = [entry for entry in row["spent"] if following is None or entry["step"] <= following["from_step"]]
    return counted[-1] if counted else {}


def seconds_between(begin: str, end: str) -> float:
    """From one UTC time to another."""
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()
