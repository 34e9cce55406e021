"""The inputs of a simulation as measured by a run: its pace, the lives of its attempts, and its goodput."""

import itertools
import statistics
from collections.abc import Iterable, Sequence

from indextts_job.report.attempts import Attempt, seconds_between, total_steps
from indextts_job.report.events import TimeSpent
from indextts_job.report.goodput import kills, where_time_went
from indextts_job.simulation.world import Life, RunPace


def pace_of(rows: Sequence[Attempt]) -> tuple[RunPace, int, float]:
    """Pace, number of steps and kills per day of a run so far.

    Args:
        rows: The attempts, oldest first; at least one has trained and saved.
    """
    # Attempts that ended before their first step have measured nothing.
    known = [row for row in rows if row.launched and row.trained and row.spent]
    return _pace(known), total_steps(known) or 0, _kills_per_day(known)


def _pace(rows: Sequence[Attempt]) -> RunPace:
    accounts = [row.spent[-1].event for row in rows]
    steps = _computed_steps(rows)
    saves = [row.checkpoint.event for row in rows if row.checkpoint]
    return RunPace(
        step_s=sum(account.steps_s for account in accounts) / steps,
        between_s=sum(map(_between_s, accounts)) / steps,
        stall_s=_mean(save.stall_seconds for save in saves),
        save_s=_mean(save.seconds for save in saves),
        start_s=_mean(seconds_between(row.launched, row.trained) for row in rows),
        # The clocks of two machines may differ by more than the pause between them.
        requeue_s=max(0.0, _mean(_pauses_s(rows))),
    )


def _computed_steps(rows: Sequence[Attempt]) -> int:
    """Steps that attempts have computed, those done again included; at least 1, since pace is divided by it."""
    return sum(max(0, row.spent[-1].event.step - row.from_step) for row in rows) or 1


def _kills_per_day(rows: Sequence[Attempt]) -> float:
    # The last attempt is still running, or it has reached the end: no machine was taken away from it.
    killed, ran_s = kills(rows[:-1])
    return 86400 * killed / ran_s if ran_s else 0.0


def _between_s(account: TimeSpent) -> float:
    return account.data_s + account.validation_s


def _pauses_s(rows: Sequence[Attempt]) -> list[float]:
    """Seconds from the end of each attempt to the launch of the next one."""
    return [seconds_between(row.end_or_heard, after.launched) for row, after in itertools.pairwise(rows)]


def _mean(values: Iterable[float]) -> float:
    """The mean of the values; 0 if there are none."""
    known = list(values)
    return statistics.mean(known) if known else 0.0


def lives_of(rows: Sequence[Attempt]) -> list[Life]:
    """The lives of a run's attempts, except the last one, which reached the end of the run."""
    return [Life(row.ran_s, noticed=bool(row.outcome)) for row in rows[:-1] if row.launched]


def measured_goodput(rows: Sequence[Attempt]) -> float:
    """Share of a run's wall time in steps that were not done again."""
    spent = where_time_went(rows)
    return spent["steps"] / sum(spent.values())
