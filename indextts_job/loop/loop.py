"""The training loop, on objects that it is given.

What is due at a step is decided by the step and the saved history, never by what happened before in this process: a
validation that a kill interrupted is made up for, one that is recorded is not repeated.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from indextts_job.checkpoint.history import Losses
from indextts_job.checkpoint.retention import FINAL, PREEMPTED
from indextts_job.data.order import Order
from indextts_job.loop.checkpointing import Checkpointing, CheckpointingSettings, Record, Saver
from indextts_job.loop.timekeeping import Timekeeper
from indextts_job.model.batch import PackedBatch
from indextts_job.preemption.deadline import Pace, Stop, StopDecision, StopRequest
from indextts_job.report.events import (
    Emit,
    Notice,
    StepDone,
    StopNoticed,
    TrainLine,
    Validated,
    ValidationProgress,
)
from indextts_job.training.distributed import ProcessGroup, SingleProcess
from indextts_job.training.quality import Goal, ValidationConfig, missed_goal, overfitting_text
from indextts_job.training.schedule import ScheduleConfig, learning_rate
from indextts_job.training.state import TrainState
from indextts_job.training.step import Discarded, Updated


class Work(Protocol):
    """The computation and its data: `StepWork`."""

    def batches(self, step: int) -> Sequence[PackedBatch] | None:
        """Micro-batches of a step, the steps in order; None on all ranks when a stop ended the wait of one."""

    def train(
        self, batches: Sequence[PackedBatch], step: int, rate: float, discard: Callable[[int], bool]
    ) -> Updated | Discarded:
        """Apply one step, or give it up when `discard(micro_batches_left)` says so."""

    def validate(self, interrupted: Callable[[int], bool]) -> Losses | None:
        """Validate; None when interrupted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """Numbers that steer a loop."""

    total_steps: int
    order: Order
    schedule: ScheduleConfig
    validation: ValidationConfig
    validation_samples: int
    log_interval_steps: int
    checkpointing: CheckpointingSettings
    goals: Sequence[Goal] = ()
    pace: Pace = field(default_factory=Pace)
    """Of the last attempt on this hardware: the first step has nothing else to decide by."""
    peak_tokens_per_s: float = 0.0
    """What the hardware could do at best, the divisor of MFU; 0 = not known."""


class TrainingLoop:
    """Trains from a state until the run is complete or a stop is requested."""

    def __init__(  # noqa: PLR0913  # all by name
        self,
        settings: LoopSettings,
        work: Work,
        saver: Saver,
        record: Record,
        *,
        stop: Stop,
        emit: Emit,
        clock: Callable[[], float],
        risk: Callable[[], str] = str,
        group: ProcessGroup | None = None,
    ) -> None:
        self._settings = settings
        self._work = work
        self._stop = stop
        self._emit = emit
        self._clock = clock
        self._risk = risk
        self._group = group or SingleProcess()
        self._agreed: StopRequest | None = None
        self._risk_known = ""
        self._pace = settings.pace
        self._time = Timekeeper(clock)
        self._stop_announced = False
        self._saves = Checkpointing(
            settings.checkpointing,
            saver,
            record,
            stop=self._known_stop,
            emit=emit,
            clock=clock,
            group=self._group,
            time=self._time,
        )
        self._saves.pace = self._pace

    def run(self, state: TrainState, saved_tags: tuple[str, ...] | None = ()) -> Literal["complete", "stopped"]:
        """Train.

        Args:
            state: Where to start; changed in place.
            saved_tags: Tags of this run's checkpoint that `state` was loaded from; None if it came from elsewhere.
        """
        self._saves.resumed(state, saved_tags)
        outcome = self._run(state)
        self._emit(self._time.spent(state.step))
        return outcome

    def _run(self, state: TrainState) -> Literal["complete", "stopped"]:
        while True:
            self._saves.collect(wait_s=0)
            if self._validation_due(state) and not self._validate(state):
                break
            if self._complete(state):
                self._saves.commit_now(state, FINAL)
                return "complete"
            self._demand_goals(state)
            self._save_if_due(state)
            if self._agreed_stop():
                self._announce_stop(state, 0, 0, "between cycles")
                break
            if not self._train(state):
                break
        if state.step > 0:
            self._saves.commit_now(state, PREEMPTED)
        return "stopped"

    def _demand_goals(self, state: TrainState) -> None:
        """End a run that has missed a goal, with everything committed.

        Raises:
            GoalMissedError: It has.
        """
        if missed := missed_goal(self._settings.goals, state.history):
            self._saves.commit_now(state, PREEMPTED)
            raise missed

    def _save_if_due(self, state: TrainState) -> None:
        if (self._saves.due(state) or self._risk_rose(state)) and self._saves.previous_done():
            self._saves.begin(state)

    def _train(self, state: TrainState) -> bool:
        """One step; False when a stop request discarded it or came while it was finished."""
        step = state.step
        with self._time.spending("data"):
            batches = self._work.batches(step)
        if batches is None:
            self._agreed_stop()
            self._announce_stop(state, 0, 0, "while its data was waited for")
            return False
        pace = replace(self._pace, save_s=self._saves.lasts_s)
        asked = StopDecision(self._agreed_stop, self._group.any_rank, self._clock, pace, len(batches))
        rate = learning_rate(step, self._settings.total_steps, self._settings.schedule)
        started_s = self._clock()
        outcome = self._work.train(batches, step, rate, asked)
        if asked.decision:
            self._announce_stop(state, asked.micro_batches_done, len(batches), asked.decision)
        if isinstance(outcome, Discarded):
            return False
        seconds = self._clock() - started_s
        self._pace = replace(self._pace, micro_batch_s=outcome.micro_batch_s, update_s=outcome.update_s)
        self._saves.pace = self._pace
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
        if state.step >= self._settings.total_steps:
            return True  # always at the end, so that the final state is judged and a best one exists
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

    def _risk_rose(self, state: TrainState) -> bool:
        """Whether the machine has become likelier to be taken away: then a checkpoint is worth its price now."""
        risk = self._risk()
        if not self._group.any_rank(risk != self._risk_known and state.step > 0):
            return False
        self._risk_known = risk
        message = f"{risk or 'another node is likelier to be taken away'}: saving now, training goes on"
        self._emit(Notice(step=state.step, topic="notice", message=message))
        return not self._saves.holds(state)

    def _agreed_stop(self) -> StopRequest | None:
        """The stop request that all ranks act on; they ask at the same places."""
        self._agreed = self._group.agree_on_stop(self._stop())
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
        state.history = state.history.after_line()
