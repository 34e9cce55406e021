"""Stop requests as values, and the decision whether a started accumulation cycle is finished or discarded."""

from collections.abc import Callable
from dataclasses import dataclass
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
