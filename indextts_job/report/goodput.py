"""Goodput: the share of wall time spent on steps that count, and the shares of everything else. Pure."""

from collections.abc import Sequence

from indextts_job.report.attempts import Attempt, seconds_between
from indextts_job.report.events import TimeSpent

PARTS = ("steps", "not committed", "waiting", "start-up", "data", "validation", "saves", "lost")
"""`steps` is the goodput. `not committed` is the time of the newest attempt since its last account; a kill would turn
it into `lost`. `waiting` is the time between attempts: the queue, and the time of a killed attempt after its last
event. `lost` is the time of steps that were done again, and all other time that is not accounted for."""
ACCOUNTED = ("steps", "data", "validation", "saves")
"""Parts that an attempt accounts for itself."""


def where_time_went(rows: Sequence[Attempt]) -> dict[str, float]:
    """Seconds by part, from the launch of the first attempt to the last event.

    Args:
        rows: Attempts, oldest first. Those of older releases, which did not account for their time, are left out.
    """
    # An attempt that ended before its first step has trained nothing; its time counts as waiting of the one before.
    rows = [row for row in rows if row.launched and row.trained]
    spent = dict.fromkeys(PARTS, 0.0)
    for index, row in enumerate(rows):
        following = rows[index + 1] if index + 1 < len(rows) else None
        for part, seconds in _parts(row, following).items():
            spent[part] += seconds
    return spent


def _parts(row: Attempt, following: Attempt | None) -> dict[str, float]:
    """Seconds by part of one attempt, and of the wait after it."""
    account = _account(row, following)
    parts = {part: getattr(account, f"{part}_s") if account else 0.0 for part in ACCOUNTED}
    parts["start-up"] = seconds_between(row.launched, row.trained)
    rest = "not committed" if following is None and not row.ended else "lost"
    known_s = sum(parts.values())
    # Clocks of nodes differ, so a difference may be negative.
    parts[rest] = max(0.0, seconds_between(row.launched, row.end_or_heard) - known_s)
    if following and row.outcome != "complete":  # a complete run that is prolonged weeks later has not waited
        parts["waiting"] = max(0.0, seconds_between(row.end_or_heard, following.launched))
    return parts


def kills(rows: Sequence[Attempt]) -> tuple[int, float]:
    """Number of attempts without an end in their journal, and the seconds that all attempts ran.

    Args:
        rows: Attempts, without one that still runs.
    """
    known = [row for row in rows if row.launched]
    return sum(not row.outcome for row in known), sum(row.ran_s for row in known)


def goodput_text(rows: Sequence[Attempt]) -> str:
    """The goodput in one line; empty when nothing is known."""
    spent = where_time_went(rows)
    total_s = sum(spent.values())
    if not total_s:
        return ""
    # Parts that would be shown as 0.0 % are left out.
    rest = ", ".join(f"{part} {spent[part] / total_s:.1%}" for part in PARTS[1:] if spent[part] / total_s >= 0.0005)
    return f"{spent['steps'] / total_s:.1%} in steps that count; {rest}"


def _account(row: Attempt, following: Attempt | None) -> TimeSpent | None:
    """The sums of an attempt at the step that the next one resumed at, or at its end."""
    accounts = [one.event for one in row.spent]
    # Accounts are written before each save, so the one at the resumed step covers exactly the steps that count.
    counted = [one for one in accounts if following is None or one.step <= following.from_step]
    return counted[-1] if counted else None
