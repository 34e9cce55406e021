"""What a run has measured so far: its pace, how long its attempts lived, and its goodput."""

import itertools
import statistics
from collections.abc import Iterable, Sequence

from indextts_job.report.attempts import Attempt, total_steps
from indextts_job.report.events import TimeSpent
from indextts_job.report.goodput import kills, seconds_between, where_time_went
from indextts_job.simulation.world import Life, RunPace


def pace_of(rows: Sequence[Attempt]) -> tuple[RunPace, int, float]:
    """Pace, steps and kills per day that a run has had so far.

    Args:
        rows: Oldest first; at least one has trained and saved.
    """
    known = [row for row in rows if row.launched and row.trained and row.spent]
    accounts = [row.spent[-1].event for row in known]
    steps = sum(max(0, account.step - row.from_step) for row, account in zip(known, accounts, strict=True)) or 1
    saves = [row.checkpoint.event for row in known if row.checkpoint]
    pace = RunPace(
        step_s=sum(account.steps_s for account in accounts) / steps,
        between_s=sum(map(_between_s, accounts)) / steps,
        stall_s=_mean(save.stall_seconds for save in saves),
        save_s=_mean(save.seconds for save in saves),
        start_s=_mean(seconds_between(row.launched, row.trained) for row in known),
        requeue_s=max(0.0, _mean(_pauses_s(known))),
    )
    killed, ran_s = kills(known[:-1])
    return pace, total_steps(known) or 0, 86400 * killed / ran_s if ran_s else 0.0


def _between_s(account: TimeSpent) -> float:
    return account.data_s + account.validation_s


def _pauses_s(rows: Sequence[Attempt]) -> list[float]:
    """From the end of each attempt to the launch of the next one."""
    return [seconds_between(row.end_or_heard, after.launched) for row, after in itertools.pairwise(rows)]


def _mean(values: Iterable[float]) -> float:
    """The mean; 0 of nothing."""
    known = list(values)
    return statistics.mean(known) if known else 0.0


def lives_of(rows: Sequence[Attempt]) -> list[Life]:
    """How long a run's attempts lived, as far as they told; the last one, which came to the end, is left out."""
    return [
        Life(seconds_between(row.launched, row.end_or_heard), noticed=bool(row.outcome))
        for row in rows[:-1]
        if row.launched
    ]


def measured_goodput(rows: Sequence[Attempt]) -> float:
    """Share of a run's wall time that went into steps that count."""
    spent = where_time_went(rows)
    return spent["steps"] / sum(spent.values())
