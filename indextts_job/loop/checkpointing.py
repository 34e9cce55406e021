"""When the loop saves, and which saves it waits for.

The step and the saved history, or rank 0's clock, decide when a save is due. All ranks call these methods at the same
places, because each of them may wait for the others.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from indextts_job.checkpoint.retention import BEST, PREEMPTED, CheckpointConfig
from indextts_job.checkpoint.values import CheckpointValues
from indextts_job.errors import UnavailableError
from indextts_job.loop.background_saver import FinishedSave, SaveCancelledError
from indextts_job.loop.save_interval import SaveInterval
from indextts_job.loop.timekeeping import Timekeeper
from indextts_job.preemption.deadline import Pace, Stop, finishes_in_time
from indextts_job.report.events import Emit, Notice
from indextts_job.training.distributed import ProcessGroup
from indextts_job.training.state import TrainState

LOOK_FOR_STOP_S = 0.2
"""How often a wait for a save looks for a stop request."""


class Saver(Protocol):
    """Writes checkpoints behind the training, one at a time: `BackgroundSaver`."""

    def save(self, state: TrainState, tags: tuple[str, ...], values: CheckpointValues | None) -> None:
        """Begin to save a state; returns as soon as the state may change again."""

    def finished(self, *, wait_s: float) -> FinishedSave | None:
        """The result of the save in flight; None if there is none, or it takes longer than `wait_s`."""

    def cancel(self) -> None:
        """Give up the save in flight as soon as possible."""


Record = Callable[[TrainState, Pace], CheckpointValues | None]
"""Gives what a checkpoint of a state records besides tensors; None on ranks that do not publish."""


@dataclass(frozen=True, slots=True)
class _Saved:
    """Which state a checkpoint holds."""

    step: int
    validations: int
    tags: tuple[str, ...]

    def describes(self, state: TrainState) -> bool:
        return (self.step, self.validations) == (state.step, len(state.history.validations))


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointingSettings:
    """Numbers that steer saves."""

    checkpoint: CheckpointConfig
    between_kills_s: float
    """Mean time between ends without notice, for automatic saves."""
    estimate_s: float
    """How long a save may take, as long as none was measured."""


class Checkpointing:
    """Decides about saves. At most one is in flight."""

    def __init__(  # noqa: PLR0913  # all by name
        self,
        settings: CheckpointingSettings,
        saver: Saver,
        record: Record,
        *,
        stop: Stop,
        emit: Emit,
        clock: Callable[[], float],
        group: ProcessGroup,
        time: Timekeeper,
    ) -> None:
        self._saver = saver
        self._record = record
        self._stop = stop
        self._emit = emit
        self._clock = clock
        self._group = group
        self._time = time
        self._interval = SaveInterval(settings.checkpoint, settings.between_kills_s, clock)
        self.lasts_s = settings.estimate_s
        """How long a save takes: the last one, at first an estimate."""
        self.pace = Pace()
        """Of the steps so far; kept up to date by the loop."""
        self._failed = 0
        self._began_s = 0.0
        self._in_flight: _Saved | None = None
        self._saved = _Saved(0, 0, ())

    def resumed(self, state: TrainState, tags: tuple[str, ...] | None) -> None:
        """The state is that of a checkpoint of this run with these tags, or a fresh one.

        None: it comes from another run or trainer, and this run has not saved it yet.
        """
        if tags is not None:
            self._saved = _Saved(state.step, len(state.history.validations), tags)

    def due(self, state: TrainState) -> bool:
        """Whether to save now."""
        if state.step == 0 or self.holds(state):
            return False
        due = self._interval.due(state.step)
        if self._interval.automatic:  # by a clock, and every rank has its own
            due = self._group.any_rank(due and self._group.rank == 0)
        return state.history.improved_at(state.step) or due

    def holds(self, state: TrainState) -> bool:
        """Whether a state is saved, or about to be."""
        return (self._in_flight or self._saved).describes(state)

    def begin(self, state: TrainState, *tags: str) -> None:
        """Save behind the training; waits for the save before it, if that is not done."""
        self.collect(wait_s=math.inf)
        self._emit(self._time.spent(state.step))
        every = (*tags, BEST) if state.history.improved_at(state.step) else tags
        self._began_s = self._clock()
        self._interval.began()
        with self._time.spending("saves"):
            self._saver.save(state, every, self._record(state, replace(self.pace, save_s=self.lasts_s)))
        self._in_flight = _Saved(state.step, len(state.history.validations), every)

    def previous_done(self) -> bool:
        """Wait for the save before; False when a stop is requested meanwhile, which then decides what to save."""
        while self._in_flight and not self._stop():
            self.collect(wait_s=LOOK_FOR_STOP_S)
        return not self._group.any_rank(self._in_flight is not None)

    def collect(self, *, wait_s: float, tolerant: bool = True) -> None:
        """Take note of a save that has ended.

        One that failed for want of storage is made up for at the next interval; failing twice in a row ends the
        attempt, and so does the first failure when `tolerant` is off.
        """
        with self._time.spending("saves"):
            finished = self._saver.finished(wait_s=wait_s)
        if finished is None or self._in_flight is None:
            return
        in_flight, self._in_flight = self._in_flight, None
        if finished.error is None:
            self._saved = in_flight
            self.lasts_s = finished.seconds
            if self._interval.measured(finished.seconds, finished.stall_s):
                message = f"from now on every {self._interval.seconds:.0f} s: a save costs {finished.stall_s:.2f} s"
                self._emit(Notice(step=in_flight.step, topic="saves", message=message))
            self._failed = 0
            return
        if isinstance(finished.error, SaveCancelledError):
            return
        self._failed += 1
        if not isinstance(finished.error, UnavailableError) or not tolerant or self._failed > 1:
            raise finished.error
        message = f"{finished.error} Training goes on; if the next save fails too, the attempt ends."
        self._emit(Notice(step=in_flight.step, topic="checkpoint", message=message, warning=True))

    def commit_now(self, state: TrainState, tag: str) -> None:
        """The last save of an attempt: waited for, and left out when the state is committed already."""
        self._settle_older(state)
        self.collect(wait_s=math.inf)
        if self._saved.describes(state) and (tag == PREEMPTED or tag in self._saved.tags):
            return
        self.begin(state, tag)
        self.collect(wait_s=math.inf, tolerant=False)

    def _settle_older(self, state: TrainState) -> None:
        """Give up the save of an older step if there is time for that of this one; else let it finish first."""
        older = self._in_flight
        replaced = older is not None and not older.describes(state) and self._stop() is not None
        # A tagged save is never given up: the best checkpoint is that step's and no later one's.
        gives_up = self._group.any_rank(replaced and older is not None and not older.tags and self._time_for_another())
        if older is None or not (replaced or gives_up):
            return
        decision = "finished first; if time runs out, the last committed checkpoint stands"
        if gives_up:
            self._saver.cancel()
            decision = "given up for that of this step: there is time for it"
        message = f"the save of step {older.step}, which is under way, is {decision}"
        self._emit(Notice(step=state.step, topic="checkpoint", message=message))

    def _time_for_another(self) -> bool:
        """Whether a save that begins now would be done before the deadline, if there is one."""
        request, now_s = self._stop(), self._clock()
        # A save that already takes longer than the one before says how the storage is now.
        pace = Pace(save_s=max(self.lasts_s, now_s - self._began_s))
        return request is not None and finishes_in_time(request, now_s, 0, pace)
