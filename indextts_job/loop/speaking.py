"""The free-running check inside a validation: when it is done, what it adds to the history, and what it costs."""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from indextts_job.checkpoint.history import History, SpeakingResult
from indextts_job.report.events import Emit, Notice, Spoke
from indextts_job.speaking.config import SpeakingConfig
from indextts_job.speaking.rule import SpeakingRule, after_speaking
from indextts_job.training.guard import GuardConfig, passed_over


class Speaks(Protocol):
    """Speaks with the present weights. `StepWork` implements it."""

    def speak(self, step: int, interrupted: Callable[[int], bool]) -> tuple[str, SpeakingResult] | None:
        """Fingerprint of what is spoken, and its figures; None when interrupted."""


class Speaker:
    """Does the check at validations, and judges the steps of a history by it."""

    def __init__(
        self, config: SpeakingConfig, guard: GuardConfig, work: Speaks, emit: Emit, clock: Callable[[], float]
    ) -> None:
        self._config, self._guard = config, guard
        self._work = work
        self._emit = emit
        self._clock = clock
        self._validated_s: float | None = None
        self._warned = False

    def rule(self, history: History) -> SpeakingRule:
        """Judges the steps of a history."""
        return SpeakingRule(history.speaking, self._config, self._guard.keep)

    def why_not_better(self, history: History) -> list[str]:
        """Why validations behind the best one, whose loss is lower, are not better: they count as no improvement."""
        if history.best is None:
            return []
        later = tuple(one for one in history.validations if one.step >= history.best.step)
        guard = history.guard
        if guard is not None:
            guard = replace(guard, results=tuple(one for one in guard.results if one.step >= history.best.step))
        since = replace(history, validations=later, guard=guard)
        return passed_over(since, history.best.step, self._guard, self.rule(history))

    def spoken(self, history: History, step: int, interrupted: Callable[[int], bool]) -> History | None:
        """The history with what the model speaks at a step; the same where the check is off.

        Args:
            history: The history before.
            step: The step.
            interrupted: Asked between codes, by all ranks together.

        Returns:
            None when interrupted: the whole validation is then done again from its commit, so that an interrupted run
            decides as another does (I2).
        """
        if self._config.mode == "off":
            return history
        began_s = self._clock()
        found = self._work.speak(step, interrupted)
        if found is None:
            return None
        records, result = found
        after = replace(history, speaking=after_speaking(history, records, result))
        seconds = self._clock() - began_s
        broken = tuple(self.rule(after).failures(step))
        self._emit(Spoke(step=step, whole=result.whole, languages=result.languages, broken=broken, seconds=seconds))
        if broken:  # a notice too, as warnings are what `report.command` hears of
            message = f"breaks limits, so it is not the best checkpoint while another passes: {'; '.join(broken)}"
            self._emit(Notice(step=step, topic="speaking", message=message, warning=True))
        self._demand_budget(step, seconds, began_s)
        return after

    def _demand_budget(self, step: int, seconds: float, began_s: float) -> None:
        """Warn, once, when the check takes more than its share of the time since the validation before.

        The records are not cut: which checkpoint is the best depends on them, and the clock is no part of a history.
        """
        before_s, self._validated_s = self._validated_s, self._clock()
        if before_s is None or self._warned:
            return
        share = seconds / (began_s - before_s + seconds)
        if share > self._config.budget:
            self._warned = True
            message = (
                f"speaking took {seconds:.1f} s, {share:.1%} of the time since the validation before; "
                f"speaking.budget is {self._config.budget:.1%}. Validate less often, or begin a run with fewer "
                "speaking.records: within a run their number stays"
            )
            self._emit(Notice(step=step, topic="speaking", message=message, warning=True))
