"""Decides when the loop saves, and which saves it waits for.

A save is due by the step and the saved history, or by the clock of rank 0. All ranks call these methods at the same
places, because each call may wait for the other ranks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from indextts_job.checkpoint.retention import BEST, GOOD, PREEMPTED, CheckpointConfig
from indextts_job.checkpoint.values import CheckpointValues
from indextts_job.errors import UnavailableError
from indextts_job.loop.background_saver import FinishedSave, SaveCancelledError
from indextts_job.loop.save_interval import SaveInterval
from indextts_job.loop.timekeeping import Timekeeper
from indextts_job.preemption.deadline import Pace, Stop, finishes_in_time
from indextts_job.report.events import Emit, Notice
from indextts_job.training.distributed import ProcessGroup
from indextts_job.training.guard import GuardConfig, inside
from indextts_job.training.state import TrainState

LOOK_FOR_STOP_S = 0.2
"""How often a wait for a save checks for a stop request."""


class Saver(Protocol):
    """Writes checkpoints in the background, one at a time. `BackgroundSaver` implements it."""

    def save(self, state: TrainState, tags: tuple[str, ...], values: CheckpointValues | None) -> None:
        """Start to save a state. Returns as soon as the state may change again."""

    def finished(self, *, wait_s: float) -> FinishedSave | None:
        """The result of the save in flight; None if there is none, or it takes longer than `wait_s`."""

    def cancel(self) -> None:
        """Give up the save in flight as soon as possible."""


Record = Callable[[TrainState, Pace], CheckpointValues | None]
"""Makes the values that a checkpoint of a state records besides tensors; None on ranks that do not publish."""


@dataclass(frozen=True, slots=True)
class _Saved:
    """Identifies the state that a checkpoint holds."""

    step: int
    validations: int
    tags: tuple[str, ...]

    def describes(self, state: TrainState) -> bool:
        # The step alone is not enough: the validation of a step changes its history, and the result has to be saved
        # too.
        return (self.step, self.validations) == (state.step, len(state.history.validations))


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointingSettings:
    """Settings of the saves."""

    checkpoint: CheckpointConfig
    between_kills_s: float
    """Mean time between ends without notice, for automatic saves."""
    every_validation: bool = False
    """Whether each validated state is saved: a command wants to see it."""
    estimate_s: float
    """Estimated duration of a save, used until one was measured."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """Decides which checkpoints are tagged `good`."""


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
        self._guard = settings.guard
        self._every_validation = settings.every_validation
        self._record = record
        self._stop = stop
        self._emit = emit
        self._clock = clock
        self._group = group
        self._time = time
        self._interval = SaveInterval(settings.checkpoint, settings.between_kills_s, clock)
        self.lasts_s = settings.estimate_s
        """Duration of a save: that of the last one, at first an estimate."""
        self.pace = Pace()
        """Durations of the last step; the loop sets them."""
        self._failed = 0
        self._began_s = 0.0
        self._in_flight: _Saved | None = None
        self._saved = _Saved(0, 0, ())

    def resumed(self, state: TrainState, tags: tuple[str, ...] | None) -> None:
        """Note where the state comes from.

        Args:
            state: The state that the attempt starts with.
            tags: Tags of the checkpoint of this run that it was loaded from, () for a fresh start; None when it comes
                from another run or trainer, so that this run has not saved it yet.
        """
        if tags is not None:
            self._saved = _Saved(state.step, len(state.history.validations), tags)

    def due(self, state: TrainState) -> bool:
        """Whether to save now."""
        # At step 0 there is nothing to save: a fresh start gives the same state.
        if state.step == 0 or self.holds(state):
            return False
        due = self._interval.due(state.step)
        if self._interval.automatic:  # by a clock, and each rank has its own: rank 0 decides
            due = self._group.any_rank(due and self._group.rank == 0)
        # A best or good state is saved at once; until the next interval it would be gone.
        return due or bool(self._earned(state)) or (self._every_validation and state.history.validated_at(state.step))

    def holds(self, state: TrainState) -> bool:
        """Whether a state is saved, or its save is in flight."""
        return (self._in_flight or self._saved).describes(state)

    def begin(self, state: TrainState, *tags: str) -> None:
        """Start a save in the background, after the one before it has ended."""
        self.collect(wait_s=math.inf)
        # The account is written before each commit: after a kill it covers all steps that count.
        self._emit(self._time.spent(state.step))
        every = (*tags, *self._earned(state))
        self._began_s = self._clock()
        self._interval.began()
        with self._time.spending("saves"):
            self._saver.save(state, every, self._record(state, replace(self.pace, save_s=self.lasts_s)))
        self._in_flight = _Saved(state.step, len(state.history.validations), every)

    def previous_done(self) -> bool:
        """Wait for the save before; False when a stop is requested meanwhile, so that `commit_now` decides."""
        while self._in_flight and not self._stop():
            self.collect(wait_s=LOOK_FOR_STOP_S)
        # Agreed: a rank may see the end of its save, or the stop, a moment before the others.
        return not self._group.any_rank(self._in_flight is not None)

    def collect(self, *, wait_s: float, tolerant: bool = True) -> None:
        """Take the result of a save that has ended.

        After a failure of the storage the next save is the retry. A second failure in a row raises its error, and so
        does the first one when `tolerant` is off.

        Args:
            wait_s: How long to wait for the end of the save; 0 = not at all.
            tolerant: Whether one failure of the storage is only a warning.
        """
        with self._time.spending("saves"):
            finished = self._saver.finished(wait_s=wait_s)
        if finished is None or self._in_flight is None:
            return
        in_flight, self._in_flight = self._in_flight, None
        if finished.error is None:
            self._succeeded(in_flight, finished)
        elif not isinstance(finished.error, SaveCancelledError):  # we gave that one up ourselves
            self._take_failure(in_flight, finished.error, tolerant=tolerant)

    def _succeeded(self, saved: _Saved, finished: FinishedSave) -> None:
        self._saved = saved
        self.lasts_s = finished.seconds
        if self._interval.measured(finished.seconds, finished.stall_s):
            message = f"from now on every {self._interval.seconds:.0f} s: a save costs {finished.stall_s:.2f} s"
            self._emit(Notice(step=saved.step, topic="saves", message=message))
        self._failed = 0

    def _take_failure(self, failed: _Saved, error: Exception, *, tolerant: bool) -> None:
        self._failed += 1
        # Storage often comes back, while a restart would lose the steps since the last commit. Any other error ends
        # the attempt at once; its exit code tells the launcher what to do.
        if not isinstance(error, UnavailableError) or not tolerant or self._failed > 1:
            raise error
        message = f"{error} Training goes on; if the next save fails too, the attempt ends."
        self._emit(Notice(step=failed.step, topic="checkpoint", message=message, warning=True))

    def commit_now(self, state: TrainState, tag: str) -> None:
        """Make the last save of an attempt and wait for it; skipped when the state is committed already."""
        self._settle_older(state)
        self.collect(wait_s=math.inf)
        # `preempted` only tells why a save was made, so any checkpoint of the state will do. `final` must be in the
        # name.
        if self._saved.describes(state) and (tag == PREEMPTED or tag in self._saved.tags):
            return
        self.begin(state, tag)
        self.collect(wait_s=math.inf, tolerant=False)

    def _settle_older(self, state: TrainState) -> None:
        """Give up the save of an older step if there is time for one of this step; otherwise let it finish first."""
        older = self._in_flight
        replaced = older is not None and not older.describes(state) and self._stop() is not None
        # Every rank asks, also one without a save in flight: the others wait in this call.
        gives_up = self._group.any_rank(replaced and self._may_give_up(older))
        if older is None or not (replaced or gives_up):
            return
        decision = "finished first; if time runs out, the last committed checkpoint stands"
        if gives_up:
            self._saver.cancel()
            decision = "given up for that of this step: there is time for it"
        message = f"the save of step {older.step}, which is under way, is {decision}"
        self._emit(Notice(step=state.step, topic="checkpoint", message=message))

    def _may_give_up(self, older: _Saved | None) -> bool:
        # A tagged save is never given up: the best checkpoint is that of its step and of no later one.
        return older is not None and not older.tags and self._time_for_another()

    def _time_for_another(self) -> bool:
        """Whether a save that starts now would end before the deadline; False without a stop request."""
        request, now_s = self._stop(), self._clock()
        # A save that has already taken longer than the one before shows how slow the storage is now.
        pace = Pace(save_s=max(self.lasts_s, now_s - self._began_s))
        return request is not None and finishes_in_time(request, now_s, 0, pace)

    def _earned(self, state: TrainState) -> tuple[str, ...]:
        """Tags that the validation at this very step has given."""
        history, step, config = state.history, state.step, self._guard
        results = history.guard.results if history.guard and config.keep else ()
        good = bool(results) and results[-1].step == step and inside(results[-1], config)
        return (*((BEST,) if history.improved_at(step) else ()), *((GOOD,) if good else ()))
