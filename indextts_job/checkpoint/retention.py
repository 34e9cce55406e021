"""Decides which checkpoints are current and which are removed. Pure: names in, names out."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from indextts_job.bounds import Bounds

FINAL, BEST, GOOD, PREEMPTED, KEEP = "final", "best", "good", "preempted", "keep"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """When to save and what to keep."""

    interval_steps: Annotated[int, Bounds(-1, 10**9)] = 1000
    """Steps between saves; 0 = only at the end and on preemption; -1 = automatic: the interval that loses least to
    saves and kills together, by their measured costs and the run's own record (Young's and Daly's formula)."""
    shortest_seconds: Annotated[float, Bounds(0, 1e8)] = 60.0
    """Lower bound of an automatic interval."""
    longest_seconds: Annotated[float, Bounds(0, 1e8)] = 3600.0
    """Upper bound of an automatic interval."""
    kills_per_day: Annotated[float, Bounds(0, 1e5)] = 0.0
    """Expected ends without notice, for an automatic interval; 0 = what this run has seen, at first one in 6 hours."""
    keep: Annotated[int, Bounds(1, 10**6)] = 3
    """Newest checkpoints kept, besides the best, the final one and the last one inside the guard's bound."""


@dataclass(frozen=True, slots=True, order=True)
class CheckpointName:
    """The parts of a checkpoint's name. Names sort by step, then by attempt."""

    step: int
    attempt: int
    attempt_start: int
    """Step at which its attempt resumed."""
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """One order of tags, so that equal names are equal."""
        object.__setattr__(self, "tags", tuple(sorted(self.tags)))


def current(names: Iterable[CheckpointName]) -> list[CheckpointName]:
    """The checkpoints that belong to the newest line of attempts, newest first.

    A checkpoint is superseded when a later attempt that resumed before it has committed: a person went back to an
    older step, the checkpoint could not be read, or an attempt wrote it after it had lost the run.
    """
    every = list(names)
    starts: dict[int, int] = {}
    """Earliest step at which each attempt resumed."""
    for name in every:
        starts[name.attempt] = min(name.attempt_start, starts.get(name.attempt, name.attempt_start))
    # From the newest attempt to the oldest: the earliest start of all attempts after each. Linear, because a run may
    # keep thousands of checkpoints and asks after every commit.
    earliest_after: dict[int, float] = {}
    earliest = math.inf
    for attempt in sorted(starts, reverse=True):
        earliest_after[attempt] = earliest
        earliest = min(earliest, starts[attempt])
    # The reversed order puts the newest step first, and of one step the newest attempt.
    return sorted((name for name in every if earliest_after[name.attempt] >= name.step), reverse=True)


def to_delete(names: Sequence[CheckpointName], keep: int) -> list[CheckpointName]:
    """Checkpoints that retention removes now.

    Kept are the `keep` newest, the newest one tagged `best`, the newest one tagged `good`, and every one tagged
    `final` or `keep`. Superseded ones are kept until the new line of attempts has committed at or beyond their step.

    Args:
        names: All checkpoints of the run, the one just committed included.
        keep: At least 1.
    """
    alive = current(names)
    kept, living = _kept(names, alive, keep), set(alive)
    # A superseded checkpoint beyond the new line's step stays: it is still the most advanced state of the run.
    reached = alive[0].step if alive else 0
    return sorted(name for name in names if name not in kept and (name in living or name.step <= reached))


def _kept(names: Sequence[CheckpointName], alive: Sequence[CheckpointName], keep: int) -> set[CheckpointName]:
    """Those that stay whatever their step is."""
    # At least one is left even where a caller asks for none: removing the last one would end the run.
    kept = {*alive[: max(1, keep)], *(name for name in alive if FINAL in name.tags)}
    # These count only among the current ones: a superseded best belongs to a history that the run has left.
    for tag in (BEST, GOOD):
        kept.update([name for name in alive if tag in name.tags][:1])
    # `keep` is a person's word and holds for superseded checkpoints too.
    return kept | {name for name in names if KEEP in name.tags}
