"""The training loop, on objects that it is given.

What is due at a step is decided by the step and the saved history, never by what happened before in this process: a
validation that a kill interrupted is made up for, one that is recorded is not repeated.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from indextts_job.checkpoint.interval import PRIOR_S
from indextts_job.checkpoint.retention import BEST, FINAL, PREEMPTED, CheckpointConfig
from indextts_job.data.batch import PackedBatch
from indextts_job.data.order import Order
from indextts_job.errors import UnavailableError
from indextts_job.preemption.deadline import Pace, Stop, StopRequest, finishes_in_time
from indextts_job.report.events import (
    Emit,
    Notice,
    StepDone,
    StopNoticed,
    TrainLine,
    Validated,
    ValidationProgress,
)
from indextts_job.training.distributed import Alone, Ranks
from indextts_job.training.history import IntervalSums, Losses, ValidationConfig
from indextts_job.training.quality import Goal, missed_goal, overfitting_text
from indextts_job.training.save_interval import SaveInterval
from indextts_job.training.saver import FinishedSave, SaveCancelledError
from indextts_job.training.schedule import ScheduleConfig, learning_rate
from indextts_job.training.state import TrainState
from indextts_job.training.step import Discarded, Updated
from indextts_job.training.stop_decision import StopDecision
from indextts_job.training.timekeeping import Timekeeper

LOOK_FOR_STOP_S = 0.2
"""How often a wait for a save looks for a stop request."""


class Work(Protocol):
    """The heavy parts of a loop."""

    def batches(self, step: int) -> Sequence[PackedBatch]:
        """Micro-batches of a step; steps are asked for in order."""

    def train(
        self, batches: Sequence[PackedBatch], step: int, rate: float, discard: Callable[[int], bool]
    ) -> Updated | Discarded:
        """Apply one step, or give it up when `discard(micro_batches_left)` says so."""

    def validate(self, interrupted: Callable[[int], bool]) -> Losses | None:
        """Validate; None when interrupted."""

    def save(self, state: TrainState, tags: tuple[str, ...]) -> None:
        """Begin to commit a checkpoint; returns as soon as the state may change again."""

    def finished_save(self, *, wait_s: float) -> FinishedSave | None:
        """What became of the save in flight; None if there is none, or it is not done within `wait_s`."""

    def cancel_save(self) -> None:
        """Give up the save in flight as soon as possible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """Numbers that steer a loop."""

    total_steps: int
    order: Order
    schedule: ScheduleConfig
    validation: ValidationConfig
    validation_samples: int
    checkpoint: CheckpointConfig
    log_interval_steps: int
    between_kills_s: float = PRIOR_S
    """Mean time between ends without notice, for automatic saves."""
    goals: Sequence[Goal] = ()
    peak_tokens_per_s: float = 0.0
    """What the hardware could do at best, the divisor of MFU; 0 = not known."""
    save_estimate_s: float
    """How long a save may take, as long as none was measured."""


@dataclass(frozen=True, slots=True)
class _Saved:
    """What a checkpoint holds, as far as the loop has to know."""

    step: int
    validations: int
    tags: tuple[str, ...]


def _describes(saved: _Saved, state: TrainState) -> bool:
    return (saved.step, saved.validations) == (state.step, len(state.history.validations))


class TrainingLoop:
    """Trains from a state until the run is complete or a stop is requested."""

    def __init__(  # noqa: PLR0913  # it is handed its world, by name
        self,
        settings: LoopSettings,
        work: Work,
        *,
        stop: Stop,
        emit: Emit,
        clock: Callable[[], float],
        risk: Callable[[], str] = str,
        ranks: Ranks | None = None,
    ) -> None:
        self._settings = settings
        self._work = work
        self._stop = stop
        self._emit = emit
        self._clock = clock
        self._risk = risk
        self._ranks = ranks or Alone()
        self._agreed: StopRequest | None = None
        self._risk_known = ""
        self._pace = Pace(save_s=settings.save_estimate_s)
        self._time = Timekeeper(clock)
        self._interval = SaveInterval(settings.checkpoint, settings.between_kills_s, clock)
        self._failed_saves = 0
        self._save_began_s = 0.0
        self._in_flight: _Saved | None = None
        self._stop_announced = False

    def run(self, state: TrainState, saved_tags: tuple[str, ...] = ()) -> Literal["complete", "stopped"]:
        """Train.

        Args:
            state: Where to start; changed in place.
            saved_tags: Tags of the checkpoint that `state` was loaded from.
        """
        self._saved = _Saved(state.step, len(state.history.validations), saved_tags)
        outcome = self._run(state)
        self._emit(self._time.spent(state.step))
        return outcome

    def _run(self, state: TrainState) -> Literal["complete", "stopped"]:
        while True:
            self._collect_save(wait_s=0)
            if self._validation_due(state) and not self._validate(state):
                break
            if self._complete(state):
                self._commit_now(state, FINAL)
                return "complete"
            if missed := missed_goal(self._settings.goals, state.history):
                self._commit_now(state, PREEMPTED)
                raise missed
            if (self._save_due(state) or self._risk_rose(state)) and self._previous_save_done():
                self._begin_save(state)
            if self._agreed_stop():
                self._announce_stop(state, 0, 0, "between cycles")
                break
            if not self._train(state):
                break
        if state.step > 0:
            self._commit_now(state, PREEMPTED)
        return "stopped"

    def _train(self, state: TrainState) -> bool:
        """One step; False when a stop request discarded it or came while it was finished."""
        step = state.step
        with self._time.spending("data"):
            batches = self._work.batches(step)
        asked = StopDecision(self._agreed_stop, self._ranks, self._clock, self._pace, len(batches))
        rate = learning_rate(step, self._settings.total_steps, self._settings.schedule)
        started_s = self._clock()
        outcome = self._work.train(batches, step, rate, asked)
        if asked.decision:
            self._announce_stop(state, asked.micro_batches_done, len(batches), asked.decision)
        if isinstance(outcome, Discarded):
            return False
        seconds = self._clock() - started_s
        self._pace = replace(self._pace, micro_batch_s=outcome.micro_batch_s, update_s=outcome.update_s)
        state.step = step + 1
        state.history = replace(
            state.history,
            samples=state.history.samples + len(outcome.samples),
            tokens=state.history.tokens + outcome.tokens,
            scaler_skips=state.history.scaler_skips + outcome.scaler_skips,
        ).after_step(outcome.losses, outcome.grad_norm)
        self._emit(StepDone(step=state.step, samples=outcome.samples, tokens=outcome.tokens, seconds=seconds))
        self._time.step_done(outcome, seconds)
        if state.step % self._settings.log_interval_steps == 0 or state.step == self._settings.total_steps:
            self._emit_line(state, rate)
        return True

    def _validate(self, state: TrainState) -> bool:
        """Validate and record the result; False when a stop request interrupted it."""
        total = self._settings.validation_samples
        started_s = self._clock()

        def interrupted(done: int) -> bool:
            self._emit(ValidationProgress(step=state.step, done=done, total=total))
            return self._agreed_stop() is not None

        with self._time.spending("validation"):
            losses = self._work.validate(interrupted)
        if losses is None:
            self._announce_stop(state, 0, 0, "validation postponed")
            return False
        overfitting = state.history.overfitting_since
        validations = self._settings.validation.overfitting_validations
        state.history = state.history.after_validation(state.step, losses, validations)
        self._emit(
            Validated(
                step=state.step,
                losses=losses,
                best=state.history.improved_at(state.step),
                samples=total,
                seconds=self._clock() - started_s,
            )
        )
        if overfitting is None and state.history.overfitting_since is not None:
            message = overfitting_text(state.history)
            self._emit(Notice(step=state.step, topic="overfitting", message=message, warning=True))
        return True

    def _validation_due(self, state: TrainState) -> bool:
        if not self._settings.validation_samples or state.step == 0 or state.history.validated_at(state.step):
            return False
        interval = self._settings.validation.interval_steps
        if interval:
            return state.step % interval == 0
        order = self._settings.order
        return order.epoch_of(state.step)[0] > order.epoch_of(state.step - 1)[0]

    def _complete(self, state: TrainState) -> bool:
        patience = self._settings.validation.early_stopping_patience
        if patience and state.history.validations_without_improvement >= patience:
            self._emit(
                Notice(
                    step=state.step,
                    topic="early stop",
                    message=f"{patience} validations in a row without improvement",
                )
            )
            return True
        return state.step >= self._settings.total_steps

    def _save_due(self, state: TrainState) -> bool:
        if state.step == 0 or _describes(self._in_flight or self._saved, state):
            return False
        due = self._interval.due(state.step)
        if self._interval.automatic:  # by a clock, and every rank has its own
            due = self._ranks.any(due and self._ranks.rank == 0)
        return state.history.improved_at(state.step) or due

    def _risk_rose(self, state: TrainState) -> bool:
        """Whether the machine has become likelier to be taken away: then a checkpoint is worth its price now."""
        risk = self._risk()
        if not self._ranks.any(risk != self._risk_known and state.step > 0):
            return False
        self._risk_known = risk
        message = f"{risk or 'another node is likelier to be taken away'}: saving now, training goes on"
        self._emit(Notice(step=state.step, topic="notice", message=message))
        return not _describes(self._in_flight or self._saved, state)

    def _begin_save(self, state: TrainState, *tags: str) -> None:
        """Save behind the training; waits for the save before it, if that is not done."""
        self._collect_save(wait_s=math.inf)
        self._emit(self._time.spent(state.step))
        every = (*tags, BEST) if state.history.improved_at(state.step) else tags
        self._save_began_s = self._clock()
        self._interval.began()
        with self._time.spending("saves"):
            self._work.save(state, every)
        self._in_flight = _Saved(state.step, len(state.history.validations), every)

    def _previous_save_done(self) -> bool:
        """Wait for the save before; False when a stop is requested meanwhile, which then decides what to save."""
        while self._in_flight and not self._stop():
            self._collect_save(wait_s=LOOK_FOR_STOP_S)
        return not self._ranks.any(self._in_flight is not None)

    def _collect_save(self, *, wait_s: float, tolerant: bool = True) -> None:
        """Take note of a save that has ended.

        One that failed for want of storage is made up for at the next interval; failing twice in a row ends the
        attempt, and so does the first failure when `tolerant` is off.
        """
        with self._time.spending("saves"):
            finished = self._work.finished_save(wait_s=wait_s)
        if finished is None or self._in_flight is None:
            return
        in_flight, self._in_flight = self._in_flight, None
        if finished.error is None:
            self._saved = in_flight
            self._pace = replace(self._pace, save_s=finished.seconds)
            if self._interval.measured(finished.seconds, finished.stall_s):
                message = f"from now on every {self._interval.seconds:.0f} s: a save costs {finished.stall_s:.2f} s"
                self._emit(Notice(step=in_flight.step, topic="saves", message=message))
            self._failed_saves = 0
            return
        if isinstance(finished.error, SaveCancelledError):
            return
        self._failed_saves += 1
        if not isinstance(finished.error, UnavailableError) or not tolerant or self._failed_saves > 1:
            raise finished.error
        message = f"{finished.error} Training goes on; if the next save fails too, the attempt ends."
        self._emit(Notice(step=in_flight.step, topic="checkpoint", message=message, warning=True))

    def _commit_now(self, state: TrainState, tag: str) -> None:
        """The last save of an attempt: waited for, and left out when the state is committed already."""
        older = self._in_flight
        # A tagged save is never given up: the best checkpoint is that step's and no later one's.
        replaced = older is not None and not _describes(older, state) and self._known_stop() is not None
        gives_up = self._ranks.any(replaced and older is not None and not older.tags and self._time_for_another_save())
        if older and (replaced or gives_up):
            if gives_up:
                self._work.cancel_save()
                decision = "given up for that of this step: there is time for it"
            else:
                decision = "finished first; if time runs out, the last committed checkpoint stands"
            message = f"the save of step {older.step}, which is under way, is {decision}"
            self._emit(Notice(step=state.step, topic="checkpoint", message=message))
        self._collect_save(wait_s=math.inf)
        if _describes(self._saved, state) and (tag == PREEMPTED or tag in self._saved.tags):
            return
        self._begin_save(state, tag)
        self._collect_save(wait_s=math.inf, tolerant=False)

    def _time_for_another_save(self) -> bool:
        """Whether a save that begins now would be done before the deadline, if there is one."""
        request, now_s = self._known_stop(), self._clock()
        # A save that already takes longer than the one before says how the storage is now.
        pace = replace(self._pace, save_s=max(self._pace.save_s, now_s - self._save_began_s))
        return request is not None and finishes_in_time(request, now_s, 0, pace)

    def _agreed_stop(self) -> StopRequest | None:
        """The stop request that all ranks act on; they ask at the same places."""
        self._agreed = self._ranks.agree(self._stop())
        return self._agreed

    def _known_stop(self) -> StopRequest | None:
        """The stop request as far as this rank knows, for what it does by itself."""
        return self._agreed or self._stop()

    def _announce_stop(self, state: TrainState, done: int, of: int, decision: str) -> None:
        request = self._known_stop()
        if request is not None and not self._stop_announced:
            self._stop_announced = True
            left_s = request.deadline_at_s - self._clock()
            self._emit(
                StopNoticed(
                    step=state.step,
                    reason=request.reason,
                    seconds_left=left_s if math.isfinite(left_s) else None,
                    micro_batches_done=done,
                    micro_batches=of,
                    decision=decision,
                )
            )

    def _emit_line(self, state: TrainState, rate: float) -> None:
        samples_per_s, tokens_per_s, seconds_per_step = self._time.rates()
        peak = self._settings.peak_tokens_per_s
        self._emit(
            TrainLine(
                step=state.step,
                epoch=state.history.samples / self._settings.order.num_samples,
                losses=state.history.interval.mean(),
                learning_rate=rate,
                grad_norm=state.history.interval.grad_norm / state.history.interval.steps,
                samples_per_s=samples_per_s,
                tokens_per_s=tokens_per_s,
                mfu=tokens_per_s / peak if peak else None,
                eta_s=(self._settings.total_steps - state.step) * seconds_per_step,
            )
        )
        state.history = replace(state.history, interval=IntervalSums())
