"""What speaking has to say about which checkpoint is the best: drop those that fail, then perhaps rank the rest. Pure.

The rule is a function of the history and of the present settings, so another limit judges old results anew.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

from indextts_job.checkpoint.history import History, Losses, SpeakingHistory, SpeakingResult, Speech, Validation
from indextts_job.speaking.config import SpeakingConfig
from indextts_job.speaking.limits import broken

NOT_HEARD = "not heard"


@dataclass(frozen=True, slots=True)
class SpeakingRule:
    """Judges steps by what was spoken there. A step without a result neither fails nor is preferred."""

    history: SpeakingHistory | None = None
    config: SpeakingConfig = field(default_factory=SpeakingConfig)
    keep: Sequence[str] = ()
    """Languages that are kept, not learned."""

    def at(self, step: int) -> SpeakingResult | None:
        """What was spoken at a step; None where nothing was, or the check is off."""
        return next((one for one in self._results() if one.step == step), None)

    @property
    def heard_any(self) -> bool:
        """Whether the check is on, and something was spoken."""
        return bool(self._results())

    def _results(self) -> Sequence[SpeakingResult]:
        return self.history.results if self.history and self.config.mode != "off" else ()

    def _languages(self, step: int) -> Sequence[Speech]:
        result = self.at(step)
        return result.languages if result else ()

    def failures(self, step: int) -> list[str]:
        """The limits that a step breaks, in words."""
        return list(chain.from_iterable(broken(speech, self.config.limits) for speech in self._languages(step)))

    def fails(self, step: int) -> bool:
        """Whether a step breaks a limit in any language."""
        return bool(self.failures(step))

    def agreement(self, step: int) -> float | None:
        """Mean agreement of the languages that are learned; None where none is known."""
        learned = self._agreements(step, self.keep) or self._agreements(step, ())
        return math.fsum(learned) / len(learned) if learned else None

    def _agreements(self, step: int, left_out: Sequence[str]) -> list[float]:
        found = (one.agreement for one in self._languages(step) if one.language not in left_out)
        return [value for value in found if value is not None]

    def preferred(self, step: int, other: int) -> bool | None:
        """Whether a step is to be preferred to another for its agreement; None where the loss decides."""
        if self.config.rank != "agreement":
            return None
        mine, others = self.agreement(step), self.agreement(other)
        return None if mine is None or others is None or mine == others else mine > others

    def columns(self, step: int) -> tuple[str, str]:
        """For a table: whether a step passes, and its agreement."""
        if self.at(step) is None:
            return NOT_HEARD, ""
        agreement = self.agreement(step)
        return "fails" if self.fails(step) else "passes", "" if agreement is None else f"{agreement:.3f}"

    def passed_over(self, history: History, best: int) -> list[str]:
        """Steps with a lower loss than the best one, in a run that keeps no languages, and why they are not the best.

        Args:
            history: All validations.
            best: Step of the best one.
        """
        bound = next((one.losses.total for one in history.validations if one.step == best), -math.inf)
        lower = [one for one in history.validations if one.losses.total < bound]
        return [passed_over_text(one.step, one.losses.total, self.against(one.step, best)) for one in lower]

    def against(self, step: int, best: int) -> str:
        """Why a step with a lower loss is not the best one; empty where speaking is not the reason."""
        if self.fails(step):
            return "" if self.fails(best) else self.speaks_badly(step)
        if self.fails(best) or self.preferred(step, best) is not False:
            return ""
        return f"agrees less with the references: {self.agreement(step):.3f} against {self.agreement(best):.3f}"

    def speaks_badly(self, step: int) -> str:
        """The limits that a step breaks, in one sentence; empty where it breaks none."""
        failures = self.failures(step)
        return f"speaks badly: {'; '.join(failures)}" if failures else ""

    def improves(self, history: History, step: int, losses: Losses) -> bool:
        """Whether a validation is the best so far, in a run that keeps no languages.

        Args:
            history: The history before it.
            step: Its step.
            losses: Its losses.
        """
        best = history.best
        if best is None:
            return True
        fails, failed = self.fails(step), self.fails(best.step)
        if fails != failed:
            return failed
        # Among those that fail agreement says nothing: a voice that never stops may agree well.
        preferred = None if fails else self.preferred(step, best.step)
        return losses.total < best.losses.total if preferred is None else preferred

    def best_of(self, validations: Sequence[Validation]) -> int | None:
        """Step of the best of some validations, in a run that keeps no languages; None without one."""
        history = History()
        for one in validations:
            improved = self.improves(history, one.step, one.losses)
            history = history.after_validation(one.step, one.losses, improved=improved)
        return history.best.step if history.best else None


def passed_over_text(step: int, loss: float, reason: str) -> str:
    """That a step with a lower loss is not the best one, and why.

    Args:
        step: The step.
        loss: Its loss.
        reason: What the present settings have against it; empty for nothing.
    """
    known = reason or "was passed over by the settings of its time, and the best one stays until a better one comes"
    return f"step {step} has a lower loss ({loss:.4f}) but {known}"


def after_speaking(history: History, records: str, result: SpeakingResult) -> SpeakingHistory:
    """What was spoken so far, with one more result.

    Args:
        history: The history before.
        records: Fingerprint of the records.
        result: What was spoken now.
    """
    before = history.speaking.results if history.speaking else ()
    return SpeakingHistory(records=records, results=(*before, result))
