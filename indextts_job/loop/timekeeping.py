"""Accounts for the time of an attempt: rates since the last train line, and sums since the first step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from indextts_job.report.events import TimeSpent
from indextts_job.training.step import Updated


class Timekeeper:
    """Sums of seconds, samples and tokens, by the loop's clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._spent_s = dict.fromkeys(("steps", "data", "validation", "saves"), 0.0)
        self._forget_interval()

    @contextmanager
    def spending(self, part: str) -> Iterator[None]:
        """Add the duration of the block to a part.

        Args:
            part: `data`, `validation` or `saves`.
        """
        started_s = self._clock()
        try:
            yield
        finally:
            self._spent_s[part] += self._clock() - started_s

    def step_done(self, outcome: Updated, seconds: float) -> None:
        """Add a step that was applied."""
        self._spent_s["steps"] += seconds
        self._seconds += seconds
        self._samples += len(outcome.samples)
        self._tokens += outcome.tokens
        self._steps += 1

    def spent(self, step: int) -> TimeSpent:
        """The sums until now."""
        return TimeSpent(step=step, **{f"{part}_s": spent_s for part, spent_s in self._spent_s.items()})

    def rates(self) -> tuple[float, float, float]:
        """Samples and tokens per second, and seconds per step, since the last call."""
        # A coarse clock may show no time at all between two lines.
        seconds = max(self._seconds, 1e-9)
        found = self._samples / seconds, self._tokens / seconds, seconds / self._steps
        self._forget_interval()
        return found

    def _forget_interval(self) -> None:
        self._seconds = 0.0
        self._samples = self._tokens = self._steps = 0
