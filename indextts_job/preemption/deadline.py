"""Stop requests and the time that is left, as values. Decides whether a cycle in flight is finished or discarded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from indextts_job.bounds import Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class PreemptionConfig:
    """What the platform promises."""

    grace_seconds: Annotated[float, Bounds(0, 1e8)] = 30.0
    """Seconds between the signal and the kill: the scheduler's grace period. AWS spot gives 120, GCP and Azure 30."""
    spot_notices: bool = True
    """Ask the cloud's metadata service for notices, which come earlier than the signal; elsewhere nothing is asked."""


@dataclass(frozen=True, slots=True)
class StopRequest:
    """Somebody asked the attempt to end."""

    reason: str
    requested_at_s: float
    """Instant of the monotonic clock."""
    deadline_at_s: float
    """Instant at which the kill is expected."""


Stop = Callable[[], StopRequest | None]
"""Asked between micro-batches; the same answer on every rank."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Measured durations that the decision rests on; 0 where nothing is known yet."""

    micro_batch_s: float = 0.0
    update_s: float = 0.0
    save_s: float = 0.0


SAFETY_RATIO = 1.5
"""Estimates are multiplied by this: a save that is late by a second is a save that never happened."""


def finishes_in_time(stop: StopRequest, now_s: float, micro_batches_left: int, pace: Pace) -> bool:
    """Whether the cycle in flight and the save after it fit before the deadline.

    Args:
        stop: The request.
        now_s: The monotonic clock.
        micro_batches_left: Micro-batches that the cycle still needs.
        pace: Measured durations.
    """
    needed_s = micro_batches_left * pace.micro_batch_s + pace.update_s + pace.save_s
    return now_s + SAFETY_RATIO * needed_s <= stop.deadline_at_s
