"""What a run remembers besides its tensors and its step: small, deterministic, part of every checkpoint (I2).

Holds no instant and no duration, so an interrupted and an undisturbed run have equal histories.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Self

from indextts_job.bounds import Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """When and on how much to validate, and when to give up."""

    interval_steps: Annotated[int, Bounds(0, 10**9)] = 1000
    """Steps between validations; 0 = once per epoch."""
    max_samples: Annotated[int, Bounds(0, 10**9)] = 3200
    """Validation samples used, the first ones of the manifests; 0 = all."""
    early_stopping_patience: Annotated[int, Bounds(0, 10**6)] = 0
    """Validations in a row without improvement after which the run is complete; 0 = never."""
    overfitting_validations: Annotated[int, Bounds(0, 10**6)] = 3
    """Validations in a row that are worse than the best one, while the training loss is better than it was then, that
    count as overfitting: a warning, and a mark in the history; 0 = do not look."""
    stop_unless: tuple[str, ...] = ()
    """Goals like `text_loss < 3.0 by 5000`: from the first validation at or after that step on, a run that has never
    reached the goal stops, committed, with exit code 79. Of text_loss, mel_loss, total and mel_top1. `by +5000` counts
    from the step of the checkpoint, of another run or the old trainer, that this run was started from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Losses over a set of samples: sums of cross entropy divided by the counted targets of the whole set."""

    text_loss: float
    mel_loss: float
    mel_top1: float
    """Share of counted code targets whose arg-max is right."""
    total: float
    """Weighted sum with the training weights: what training minimises and what `best` compares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Result of one validation."""

    step: int
    losses: Losses
    train_total: float | None = None
    """Mean training loss of the steps since the validation before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalSums:
    """Sums over the steps of an interval. Saved, so that what is said at its end is the same after a resume."""

    steps: int = 0
    text_loss: float = 0.0
    mel_loss: float = 0.0
    mel_top1: float = 0.0
    total: float = 0.0
    grad_norm: float = 0.0

    def plus(self, losses: Losses, grad_norm: float) -> Self:
        """The sums with one more step."""
        return replace(
            self,
            steps=self.steps + 1,
            text_loss=self.text_loss + losses.text_loss,
            mel_loss=self.mel_loss + losses.mel_loss,
            mel_top1=self.mel_top1 + losses.mel_top1,
            total=self.total + losses.total,
            grad_norm=self.grad_norm + grad_norm,
        )

    def mean(self) -> Losses:
        """Mean over the steps of the interval."""
        return Losses(
            text_loss=self.text_loss / self.steps,
            mel_loss=self.mel_loss / self.steps,
            mel_top1=self.mel_top1 / self.steps,
            total=self.total / self.steps,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Counters and validation results up to a step."""

    samples: int = 0
    """Samples of all updates so far."""
    tokens: int = 0
    """Packed rows of all updates so far."""
    scaler_skips: int = 0
    """Tries of a step that float16 overflowed and that were repeated with a smaller scale."""
    interval: IntervalSums = field(default_factory=IntervalSums)
    """Since the last train line."""
    last_line: Losses | None = None
    """Means of the last train line: what is known of the training right behind one."""
    since_validation: IntervalSums = field(default_factory=IntervalSums)
    validations: tuple[Validation, ...] = ()
    best: Validation | None = None
    validations_without_improvement: int = 0
    overfitting_since: int | None = None
    """Step of the validation that first showed it."""

    def after_step(self, losses: Losses, grad_norm: float) -> Self:
        """The history with the losses of one more step."""
        return replace(
            self,
            interval=self.interval.plus(losses, grad_norm),
            since_validation=self.since_validation.plus(losses, grad_norm),
        )

    def after_line(self) -> Self:
        """The history behind a train line."""
        return replace(self, interval=IntervalSums(), last_line=self.interval.mean())

    def after_validation(self, step: int, losses: Losses, overfitting_validations: int = 0) -> Self:
        """The history with one more validation; a lower weighted total is an improvement.

        Args:
            step: The position.
            losses: Of the validation set.
            overfitting_validations: See `ValidationConfig`.
        """
        train_total = self.since_validation.mean().total if self.since_validation.steps else None
        validation = Validation(step=step, losses=losses, train_total=train_total)
        improved = self.best is None or losses.total < self.best.losses.total
        after = replace(
            self,
            validations=(*self.validations, validation),
            since_validation=IntervalSums(),
            best=validation if improved else self.best,
            validations_without_improvement=0 if improved else self.validations_without_improvement + 1,
        )
        if after.overfitting_since is None and after._overfits(overfitting_validations):
            return replace(after, overfitting_since=step)
        return after

    def _overfits(self, validations: int) -> bool:
        best = self.best
        if not validations or self.validations_without_improvement < validations:
            return False
        if best is None or best.train_total is None:
            return False
        last = self.validations[-validations:]
        return all(one.train_total is not None and one.train_total < best.train_total for one in last)

    def validated_at(self, step: int) -> bool:
        """Whether the validation due at a step is done."""
        return bool(self.validations) and self.validations[-1].step == step

    def improved_at(self, step: int) -> bool:
        """Whether the validation at a step was the best one so far."""
        return self.best is not None and self.best.step == step

    def to_json(self) -> dict[str, Any]:
        """Plain values; floats survive JSON bit for bit."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        plain = dict(document)
        validations = tuple(_validation(entry) for entry in plain.pop("validations"))
        best, line = plain.pop("best"), plain.pop("last_line", None)
        return cls(
            last_line=None if line is None else Losses(**line),
            interval=IntervalSums(**plain.pop("interval")),
            since_validation=IntervalSums(**plain.pop("since_validation", {})),
            validations=validations,
            best=None if best is None else _validation(best),
            **plain,
        )


def _validation(document: Mapping[str, Any]) -> Validation:
    losses = Losses(**document["losses"])
    return Validation(step=document["step"], losses=losses, train_total=document.get("train_total"))
