"""Stop requests as values, and the decision whether a started accumulation cycle is finished or discarded."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

from indextts_job.bounds import Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class PreemptionConfig:
    """How the platform ends an attempt."""

    grace_seconds: Annotated[float, Bounds(0, 1e8)] = 30.0
    """Seconds between the signal and the kill: the scheduler's grace period. AWS spot gives 120, GCP and Azure 30."""
    spot_notices: bool = True
    """Ask the cloud's metadata service for notices, which come earlier than the signal; elsewhere nothing is asked."""


@dataclass(frozen=True, slots=True)
class StopRequest:
    """A request to end the attempt."""

    reason: str
    requested_at_s: float
    """Instant of the request, on the monotonic clock."""
    deadline_at_s: float
    """Instant of the expected kill, on the monotonic clock."""


Stop = Callable[[], StopRequest | None]
"""Called between micro-batches; returns the same on every rank."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Measured durations of this attempt; 0 where nothing has been measured."""

    micro_batch_s: float = 0.0
    update_s: float = 0.0
    save_s: float = 0.0


SAFETY_RATIO = 1.5
"""Estimates are multiplied by this, because a save that misses the deadline by a second is lost altogether."""


def finishes_in_time(stop: StopRequest, now_s: float, micro_batches_left: int, pace: Pace) -> bool:
    """Whether the rest of the cycle and the save after it are done before the deadline.

    Args:
        stop: The stop request.
        now_s: The present instant of the monotonic clock.
        micro_batches_left: Number of micro-batches that the cycle still needs.
        pace: Measured durations.
    """
    needed_s = micro_batches_left * pace.micro_batch_s + pace.update_s + pace.save_s
    return now_s + SAFETY_RATIO * needed_s <= stop.deadline_at_s


class StopDecision:
    """Says whether the step in flight is finished or discarded once a stop is requested, the same on every rank.

    The step asks it between micro-batches.
    """

    def __init__(
        self,
        stop: Stop,
        on_any_rank: Callable[[bool], bool],
        clock: Callable[[], float],
        pace: Pace,
        micro_batches: int,
    ) -> None:
        """The step begins now.

        Args:
            stop: Gives the stop request that all ranks act on.
            on_any_rank: Whether something is so on some rank; every rank calls it at the same places.
            clock: The monotonic clock.
            pace: Known before this step.
            micro_batches: Number of micro-batches of this step.
        """
        self._stop = stop
        self._on_any_rank = on_any_rank
        self._clock = clock
        self._pace = pace
        self._micro_batches = micro_batches
        self._began_s = clock()
        self.decision = ""
        """`finish` or `discard`; empty while no stop is requested."""
        self.micro_batches_done = 0
        """When the stop request was first seen."""

    def __call__(self, micro_batches_left: int) -> bool:
        """Whether to give the step up, with this many micro-batches still to do."""
        request = self._stop()
        if request is None:
            return False
        in_time = finishes_in_time(request, self._clock(), micro_batches_left, self._pace_now(micro_batches_left))
        finish = not self._on_any_rank(not in_time)
        if not self.decision:
            self.micro_batches_done = self._micro_batches - micro_batches_left
        self.decision = "finish" if finish else "discard"
        return not finish

    def _pace_now(self, micro_batches_left: int) -> Pace:
        """The slower of the known pace and that of this step: the first step of an attempt knows no other."""
        done = self._micro_batches - micro_batches_left
        if not done:
            return self._pace
        measured_s = (self._clock() - self._began_s) / done
        return replace(self._pace, micro_batch_s=max(self._pace.micro_batch_s, measured_s))
