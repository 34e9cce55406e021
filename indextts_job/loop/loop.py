"""The training loop. It works on objects that it is given, so tests run it without a model.

The step and the saved history decide what is due at a step, never what this process has done before. So a validation
that a kill interrupted is done by the next attempt, and one that is recorded is not repeated.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Protocol

from indextts_job.checkpoint.history import History, Losses
from indextts_job.checkpoint.retention import FINAL, PREEMPTED
from indextts_job.data.order import SampleOrder
from indextts_job.errors import ConfigError, DataError, DeviceMemoryError
from indextts_job.loop.checkpointing import Checkpointing, CheckpointingSettings, Record, Saver
from indextts_job.loop.speaking import Speaker, Speaks
from indextts_job.loop.spike import SpikeWatch
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
from indextts_job.speaking.config import SpeakingConfig
from indextts_job.training.distributed import ProcessGroup, SingleProcess
from indextts_job.training.evaluate import ByLanguage
from indextts_job.training.guard import (
    GuardConfig,
    after_validation,
    baseline,
    baseline_text,
    breach_text,
    guard_error,
    unmeasured,
)
from indextts_job.training.quality import Goal, ValidationConfig, missed_goal, overfitting_text
from indextts_job.training.schedule import ScheduleConfig, learning_rate
from indextts_job.training.state import TrainState
from indextts_job.training.step import Discarded, Updated


class Work(Speaks, Protocol):
    """The computation and its data. `StepWork` implements it."""

    def batches(self, step: int) -> Sequence[PackedBatch] | None:
        """Micro-batches of a step; steps come in order. None on all ranks when a stop ended the wait of one."""

    def train(
        self, batches: Sequence[PackedBatch], step: int, rate: float, discard: Callable[[int], bool]
    ) -> Updated | Discarded:
        """Apply one step, or give it up when `discard(micro_batches_left)` says so."""

    def validate(self, interrupted: Callable[[int], bool]) -> Losses | None:
        """Validate; None when interrupted."""

    def validate_by_language(self, interrupted: Callable[[int], bool], *, base: bool) -> ByLanguage | None:
        """The same with the languages told apart; with `base` without an adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """Settings of a loop."""

    total_steps: int
    order: SampleOrder
    schedule: ScheduleConfig
    validation: ValidationConfig
    validation_samples: int
    log_interval_steps: int
    checkpointing: CheckpointingSettings
    goals: Sequence[Goal] = ()
    guard: GuardConfig = field(default_factory=GuardConfig)
    speaking: SpeakingConfig = field(default_factory=SpeakingConfig)
    records: Mapping[str, str] = field(default_factory=dict)
    """By language, what identifies the records of the validation set; for the guard."""
    pace: Pace = field(default_factory=Pace)
    """Measured by the last attempt on this hardware; the first step of this one has no measurement of its own."""
    peak_tokens_per_s: float = 0.0
    """Rate at the hardware's peak, the divisor of the model FLOPs utilisation (MFU); 0 = not known."""


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
        self._speaker = Speaker(settings.speaking, settings.guard, work, emit, clock)
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
            state: The state to start from; changed in place.
            saved_tags: Tags of the checkpoint of this run that `state` was loaded from, () for a fresh start; None if
                it came from another run or trainer.
        """
        self._saves.resumed(state, saved_tags)
        self._spikes = SpikeWatch(state.history.last_line.total if state.history.last_line else None)
        outcome = self._run(state)
        self._emit(self._time.spent(state.step))
        return outcome

    def _run(self, state: TrainState) -> Literal["complete", "stopped"]:
        if unmeasured(state.history.guard, self._settings.guard) and not self._measure_base(state):
            return "stopped"
        if self._trained(state):
            self._saves.commit_now(state, FINAL)
            return "complete"
        # At step 0 there is nothing to lose: the next attempt starts afresh.
        if state.step > 0:
            self._saves.commit_now(state, PREEMPTED)
        return "stopped"

    def _trained(self, state: TrainState) -> bool:
        """Train until the run is complete; False when a stop was requested before."""
        while True:
            self._saves.collect(wait_s=0)
            # Before the save of the same step, so that the checkpoint has the result and may be tagged `best`.
            if self._validation_due(state) and not self._validate(state):
                return False
            complete = self._complete(state)
            # Also of a run that is complete: what its last validation shows counts too.
            self._demand_goals(state, FINAL if complete else PREEMPTED)
            if complete:
                return True
            self._save_if_due(state)
            if self._agreed_stop():
                self._announce_stop(state, 0, 0, "between cycles")
                return False
            if not self._train(state):
                return False

    def _demand_goals(self, state: TrainState, tag: str) -> None:
        """End a run that has missed a goal, after a commit.

        Args:
            state: The present state.
            tag: Tag of the checkpoint.

        Raises:
            GoalMissedError: A goal is missed.
        """
        guard = state.history.guard
        worn = guard_error(guard, self._settings.guard) if guard else None
        if missed := worn or missed_goal(self._settings.goals, state.history):
            self._saves.commit_now(state, tag)
            raise missed

    def _save_if_due(self, state: TrainState) -> None:
        if (self._saves.due(state) or self._risk_rose(state)) and self._saves.previous_done():
            self._saves.begin(state)

    def _train(self, state: TrainState) -> bool:
        """Train one step. False when a stop request has ended it: it was discarded, or its data did not come."""
        step = state.step
        with self._time.spending("data"):
            batches = self._work.batches(step)
        if batches is None:
            self._agreed_stop()  # one rank knows of the stop; the others learn of it here
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
        # The last step is the best estimate for the next one: the hardware is the same, and so is the load beside it.
        self._pace = replace(self._pace, micro_batch_s=outcome.micro_batch_s, update_s=outcome.update_s)
        self._saves.pace = self._pace
        state.step = step + 1
        state.history = replace(
            state.history,
            samples=state.history.samples + len(outcome.samples),
            tokens=state.history.tokens + outcome.tokens,
            scaler_skips=state.history.scaler_skips + outcome.scaler_skips,
        ).after_step(outcome.losses, outcome.grad_norm, outcome.sources)
        self._emit(StepDone(step=state.step, samples=outcome.samples, tokens=outcome.tokens, seconds=seconds))
        self._time.step_done(outcome, seconds)
        # By the step, not by time: lines of interrupted and undisturbed runs then stand at the same steps.
        if state.step % self._settings.log_interval_steps == 0 or state.step == self._settings.total_steps:
            self._emit_line(state, rate)
        return True

    def _validate(self, state: TrainState) -> bool:
        """Validate and record the result; False when a stop request interrupted it."""
        started_s = self._clock()
        before = state.history
        with self._time.spending("validation"):
            try:
                after = self._validated(before, state.step)
            # Bad records or weights, or too little memory. The steps since the last save are not lost for it, and the
            # next attempt validates here again, so it decides as another one would.
            except (DataError, DeviceMemoryError):
                self._saves.commit_now(state, PREEMPTED)
                raise
        if after is None:
            self._announce_stop(state, 0, 0, "validation postponed")
            return False
        state.history = after
        self._emit(
            Validated(
                step=state.step,
                losses=after.validations[-1].losses,
                best=after.improved_at(state.step),
                samples=self._settings.validation_samples,
                seconds=self._clock() - started_s,
                languages=after.guard.results[-1].languages if after.guard and self._settings.guard.keep else (),
            )
        )
        self._warn(state, before)
        return True

    def _validated(self, history: History, step: int) -> History | None:
        """The history with a validation; None when interrupted."""

        def interrupted(done: int) -> bool:
            self._emit(ValidationProgress(step=step, done=done, total=self._settings.validation_samples))
            return self._agreed_stop() is not None

        by_language = partial(self._work.validate_by_language, base=False)
        found = (by_language if self._settings.guard.keep else self._work.validate)(interrupted)
        spoken = self._speaker.spoken(history, step, lambda _done: self._agreed_stop() is not None) if found else None
        if found is None or spoken is None:
            return None
        rule, validations = self._speaker.rule(spoken), self._settings.validation.overfitting_validations
        if isinstance(found, Losses):
            improved = rule.improves(history, step, found)
            return spoken.after_validation(step, found, validations, improved=improved)
        losses = (found.losses, found.languages)
        return after_validation(spoken, step, losses, validations, self._settings.guard, rule)

    def _warn(self, state: TrainState, before: History) -> None:
        """Warn of what a validation has shown.

        Args:
            state: The state behind it.
            before: The history before.
        """
        history = state.history
        if history.guard and (text := breach_text(history.guard, self._settings.guard)):
            self._emit(Notice(step=state.step, topic="guard", message=text, warning=True))
        if before.overfitting_since is None and history.overfitting_since is not None:
            message = overfitting_text(history)
            self._emit(Notice(step=state.step, topic="overfitting", message=message, warning=True))

    def _measure_base(self, state: TrainState) -> bool:
        """Measure the base on the languages that have to be kept; False when a stop request interrupted it.

        Raises:
            ConfigError: The weights are no longer the base's.
        """
        # New pieces train beside an adapter too, so with them the base cannot be had back.
        has_base = state.model.adapter is not None and not state.model.vocabulary.extended
        if state.step and not has_base:
            missing = ", ".join(unmeasured(state.history.guard, self._settings.guard))
            raise ConfigError(
                f"guard.keep: the base was not measured on {missing} before the first step of this training, and its "
                "weights have changed since. Leave it out of guard.keep; or start a new run with these weights, whose "
                "base they are then (--no-load-optimizer --output-dir NEW)."
            )
        with self._time.spending("validation"):
            found = self._work.validate_by_language(lambda _done: self._agreed_stop() is not None, base=True)
        if found is None:
            self._announce_stop(state, 0, 0, "the base is measured at the next start")
            return False
        fresh = baseline(found.languages, self._settings.guard, self._settings.records)
        # A language may be added to a guard that has results already; the base is the same, so are its losses.
        guard = replace(state.history.guard, baselines=fresh.baselines) if state.history.guard else fresh
        state.history = replace(state.history, guard=guard)
        self._emit(Notice(step=state.step, topic="guard", message=baseline_text(found.languages, self._settings.guard)))
        return True

    def _validation_due(self, state: TrainState) -> bool:
        if not self._settings.validation_samples or state.step == 0 or state.history.validated_at(state.step):
            return False
        if state.step >= self._settings.total_steps:
            return True  # always at the end, so that the final state has a result and a best one exists
        interval = self._settings.validation.interval_steps
        if interval:
            return state.step % interval == 0
        # The global batch need not divide the epoch: the first step that reaches into a new epoch counts.
        order = self._settings.order
        return order.epoch_of(state.step)[0] > order.epoch_of(state.step - 1)[0]

    def _complete(self, state: TrainState) -> bool:
        patience = self._settings.validation.early_stopping_patience
        if patience and state.history.validations_without_improvement >= patience:
            text = f"{patience} validations in a row without improvement"
            message = "; ".join([text, *self._speaker.why_not_better(state.history)])
            self._emit(Notice(step=state.step, topic="early stop", message=message))
            return True
        return state.step >= self._settings.total_steps

    def _risk_rose(self, state: TrainState) -> bool:
        """Whether to save because the cloud has raised the probability that this machine is taken away."""
        risk = self._risk()
        if not self._group.any_rank(risk != self._risk_known and state.step > 0):
            return False
        # Remembered, so that one notice causes one save.
        self._risk_known = risk
        message = f"{risk or 'another node is likelier to be taken away'}: saving now, training goes on"
        self._emit(Notice(step=state.step, topic="notice", message=message))
        return not self._saves.holds(state)

    def _agreed_stop(self) -> StopRequest | None:
        """The stop request that all ranks act on. A collective call."""
        self._agreed = self._group.agree_on_stop(self._stop())
        return self._agreed

    def _known_stop(self) -> StopRequest | None:
        """The stop request that this rank knows of, for decisions that need no agreement."""
        return self._agreed or self._stop()

    def _announce_stop(self, state: TrainState, done: int, of: int, decision: str) -> None:
        request = self._known_stop()
        # One event per stop: several places may notice it.
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
        # Rates come from the clock and are not saved; losses come from the history, which is.
        samples_per_s, tokens_per_s, seconds_per_step = self._time.rates()
        peak = self._settings.peak_tokens_per_s
        self._emit(
            TrainLine(
                step=state.step,
                epoch=self._settings.order.epochs_after(state.history.samples),
                losses=state.history.interval.mean(),
                learning_rate=rate,
                grad_norm=state.history.interval.grad_norm / state.history.interval.steps,
                samples_per_s=samples_per_s,
                tokens_per_s=tokens_per_s,
                mfu=tokens_per_s / peak if peak else None,
                sources={one.source: one.mel / one.targets for one in state.history.sources},
                eta_s=(self._settings.total_steps - state.step) * seconds_per_step,
            )
        )
        if told := self._spikes.after(state.history.interval.mean().total):
            self._emit(Notice(step=state.step, topic="loss", message=told, warning=True))
        state.history = state.history.after_line()
