"""Judges the quality of a run: goals to reach by a step, and the signs of overfitting. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from indextts_job.bounds import Bounds
from indextts_job.checkpoint.history import History, Validation
from indextts_job.errors import ConfigError, GoalMissedError

METRICS = ("text_loss", "mel_loss", "total", "mel_top1")
_GOAL = re.compile(r"\s*(\w+)\s*([<>])\s*([0-9.eE+-]+)\s+by\s+(\+?)(\d+)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """When to validate, on how many samples, and when to end the run."""

    interval_steps: Annotated[int, Bounds(0, 10**9)] = 1000
    """Steps between validations; 0 = once per epoch."""
    max_samples: Annotated[int, Bounds(0, 10**9)] = 3200
    """Validation samples used, the first ones of the manifests; 0 = all."""
    early_stopping_patience: Annotated[int, Bounds(0, 10**6)] = 0
    """Validations in a row without improvement after which the run is complete; 0 = never. What does not become the
    best checkpoint, for a guard or for what it speaks, is no improvement even with a lower loss."""
    overfitting_validations: Annotated[int, Bounds(0, 10**6)] = 3
    """Validations in a row that are worse than the best one, while the training loss is better than it was then, that
    count as overfitting: a warning, and a mark in the history; 0 = do not look."""
    command: tuple[str, ...] = ()
    """Program and arguments that are run on an export of each validated checkpoint, beside the training; {export} and
    {step} are replaced. The last line of its output that is a JSON object gives curves; a failure is a warning. Taken
    from a file of this machine or the command line only."""
    command_seconds: Annotated[float, Bounds(0, 1e6)] = 600.0
    """Limit for the export and the command together."""
    stop_unless: tuple[str, ...] = ()
    """Goals like `text_loss < 3.0 by 5000`: from the first validation at or after that step on, a run that has never
    reached the goal stops, committed, with exit code 79. Of text_loss, mel_loss, total and mel_top1. `by +5000` counts
    from the step of the checkpoint, of another run or the old trainer, that this run was started from."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A metric of the validation, below or above a value, by a step."""

    metric: str
    below: bool
    value: float
    step: int

    def missed(self, validations: Sequence[Validation]) -> str:
        """The message when the goal is missed; empty while there is time, and once it was reached.

        Args:
            validations: All so far, oldest first.
        """
        if not validations or validations[-1].step < self.step:
            return ""
        values = [(float(getattr(one.losses, self.metric)), one.step) for one in validations]
        # The best of all, not the last: a run that has reached its goal may get worse again, which is for early
        # stopping to judge.
        best, at_step = min(values) if self.below else max(values)
        if self._reached_by(best):
            return ""
        sign = "<" if self.below else ">"
        return (
            f"the goal {self.metric} {sign} {self.value:g} by step {self.step} is missed: the best so far is "
            f"{best:.4g}, at step {at_step}"
        )

    def _reached_by(self, value: float) -> bool:
        return value < self.value if self.below else value > self.value


def parse_goals(texts: Sequence[str], began_at: int = 0) -> list[Goal]:
    """Goals from the texts of the configuration.

    Args:
        texts: One goal each, for example `text_loss < 3.0 by 5000`.
        began_at: Step at which the run began; `by +N` counts from there.

    Raises:
        ConfigError: A text is no goal.
    """
    return [_parse(text, began_at) for text in texts]


def _parse(text: str, began_at: int) -> Goal:
    match = _GOAL.fullmatch(text)
    metric = match[1] if match else ""
    try:
        value = float(match[3]) if match else 0.0
    except ValueError:  # the expression also takes what is no number, such as 1.2.3
        match = None
    if match is None or metric not in METRICS:
        raise ConfigError(
            f"validation.stop_unless: {text!r} is no goal. Expected METRIC < VALUE by STEP with one of "
            f"{', '.join(METRICS)}; `text_loss < 3.0 by 5000`, say, or `mel_top1 > 0.2 by +10000` for "
            "steps since this run began."
        )
    return Goal(metric, match[2] == "<", value, int(match[5]) + (began_at if match[4] else 0))


def missed_goal(goals: Sequence[Goal], history: History) -> GoalMissedError | None:
    """The error that ends the run when a goal is missed; None otherwise."""
    missed = next(filter(None, (goal.missed(history.validations) for goal in goals)), "")
    if not missed:
        return None
    return GoalMissedError(
        f"{missed}. Everything is committed. Look at data, learning rate and base checkpoint; to go on all the same, "
        "take the goal out of validation.stop_unless."
    )


def overfitting_text(history: History) -> str:
    """The warning about overfitting, for a history that shows it."""
    last = history.validations[-1]
    lowest = min(history.validations, key=lambda one: one.losses.total)
    worse = len(history.validations) - 1 - history.validations.index(lowest)
    return (
        f"the last {worse} validations are worse than that of step {lowest.step} "
        f"({last.losses.total:.4f}, {lowest.losses.total:.4f} then), while the training loss has fallen on: the model "
        "learns the training set by heart. The best checkpoint is kept; validation.early_stopping_patience would stop."
    )
