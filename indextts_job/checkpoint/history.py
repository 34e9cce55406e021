"""Counters and results that a run keeps besides its tensors and its step; part of every checkpoint (I2).

The history is small and deterministic. It holds no instant and no duration, so an interrupted and an undisturbed run
have equal histories.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from indextts_job.parsing import Count


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

    step: Count
    losses: Losses
    train_total: float | None = None
    """Mean training loss of the steps since the validation before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Losses of the base on the records of a language that has to be kept."""

    language: str
    mel: tuple[float, ...]
    """[records] sum of cross entropy over the codes, in nats."""
    targets: tuple[Count, ...]
    """[records] number of counted codes."""
    records: str = ""
    """SHA-256 over ids and content of the records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageLoss:
    """Losses of one language at a validation."""

    language: str
    samples: Count
    text_loss: float
    mel_loss: float
    rise: float | None = None
    """Of the code loss above the base's, in nats per code; None where the base was not measured."""
    rise_error: float | None = None
    """Its standard error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageResult:
    """Losses of all languages at a validation."""

    step: Count
    languages: tuple[LanguageLoss, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardHistory:
    """What the guard has seen."""

    baselines: tuple[Baseline, ...]
    results: tuple[LanguageResult, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """Figures of what the model spoke by itself, of one language or of all. `docs/speaking.md` defines them."""

    language: str
    records: Count
    no_stop: Count
    """Records without a stop code within their limit; this and the next four count records."""
    early_stop: Count
    loops: Count
    silence: Count
    special: Count
    length_ratio: float
    """Spoken codes over expected ones, of all records together."""
    length_p5: float
    """5th percentile of the ratios of single records."""
    length_p95: float
    longest_run_s: float
    """Longest run of one code, in seconds."""
    distinct: float
    """Distinct outputs over distinct pairs of text and output: 1 unless different texts sound alike."""
    prefix_same: float
    """Mean common prefix of the outputs of two different texts, over the mean length."""
    entropy: float
    """Mean entropy of the scores, in nats."""
    agreement: float | None = None
    """1 - edit distance to the reference over the longer length; None where there is no reference."""
    agreement_training_positions: float | None = None
    """The same with the positions of training; None where they were not tried."""
    tail_codes: float | None = None
    """Share of codes that training data has in tails much more often than elsewhere; None where none is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakingResult:
    """What was spoken at a validation."""

    step: Count
    whole: Speech
    languages: tuple[Speech, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakingHistory:
    """What the model has spoken at validations."""

    records: str
    """Fingerprint of the records; figures of other records cannot be compared."""
    results: tuple[SpeakingResult, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalSums:
    """Sums over the steps of an interval. They are saved, so that its means are the same after a resume."""

    steps: Count = 0
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
class SourceSums:
    """Sums over the code targets of one source of a mixture."""

    source: str
    mel: float
    """Cross entropy in nats."""
    targets: Count

    def plus(self, other: Self) -> Self:
        """The sums of both."""
        return replace(self, mel=self.mel + other.mel, targets=self.targets + other.targets)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Counters and validation results up to a step."""

    samples: Count = 0
    """Samples of all updates so far."""
    tokens: Count = 0
    """Packed rows of all updates so far."""
    scaler_skips: Count = 0
    """Tries of a step that float16 overflowed and that were repeated with a smaller scale."""
    interval: IntervalSums = field(default_factory=IntervalSums)
    """Since the last train line."""
    sources: tuple[SourceSums, ...] = ()
    """Code losses of the sources of a mixture since the last train line; empty where all samples are one source."""
    last_line: Losses | None = None
    """Means that the last train line showed. Directly after a line the interval is empty, and these stand in for it."""
    since_validation: IntervalSums = field(default_factory=IntervalSums)
    validations: tuple[Validation, ...] = ()
    best: Validation | None = None
    validations_without_improvement: Count = 0
    overfitting_since: Count | None = None
    """Step of the validation that first showed it."""
    guard: GuardHistory | None = None
    """None in a run that keeps no languages."""
    speaking: SpeakingHistory | None = None
    """None in a run whose model has not spoken."""

    def after_step(self, losses: Losses, grad_norm: float, sources: Sequence[SourceSums] = ()) -> Self:
        """The history with the losses of one more step.

        Args:
            losses: Of the whole step.
            grad_norm: Norm of its gradient before clipping.
            sources: Its code losses by source, in a mixture.
        """
        return replace(
            self,
            sources=_merged(self.sources, sources),
            interval=self.interval.plus(losses, grad_norm),
            since_validation=self.since_validation.plus(losses, grad_norm),
        )

    def after_line(self) -> Self:
        """The history behind a train line."""
        return replace(self, interval=IntervalSums(), sources=(), last_line=self.interval.mean())

    def after_validation(
        self, step: int, losses: Losses, overfitting_validations: int = 0, *, improved: bool | None = None
    ) -> Self:
        """The history with one more validation.

        Args:
            losses: Losses of the validation set.
            overfitting_validations: Validations in a row without improvement that count as overfitting; 0 = never.
            improved: Whether it is the best so far; None = if its weighted total is lower.
        """
        # Without a step since the validation before there is no mean.
        train_total = self.since_validation.mean().total if self.since_validation.steps else None
        validation = Validation(step=step, losses=losses, train_total=train_total)
        # Strictly lower: of equal validations the earlier checkpoint stays the best one.
        if improved is None:
            improved = self.best is None or losses.total < self.best.losses.total
        after = replace(
            self,
            validations=(*self.validations, validation),
            since_validation=IntervalSums(),
            best=validation if improved else self.best,
            validations_without_improvement=0 if improved else self.validations_without_improvement + 1,
        )
        # The first time is kept: it tells from which checkpoint on more training did harm.
        if after.overfitting_since is None and after._overfits(overfitting_validations):
            return replace(after, overfitting_since=step)
        return after

    def _overfits(self, validations: int) -> bool:
        if not validations or len(self.validations) <= validations:
            return False
        # Not the best one: a guard may have another opinion of it.
        lowest = min(self.validations[:-validations], key=lambda one: one.losses.total)
        before = lowest.train_total
        if before is None:
            return False
        # Worse validation alone may be an unstable training. Overfitting also has a training loss that went on falling.
        return all(
            one.losses.total >= lowest.losses.total and one.train_total is not None and one.train_total < before
            for one in self.validations[-validations:]
        )

    @property
    def train_loss(self) -> float | None:
        """Mean weighted training loss since the last train line; right behind a line, the mean that it showed."""
        # Directly after a line the interval is empty, yet a checkpoint is often saved at just that step.
        if self.interval.steps:
            return self.interval.mean().total
        return self.last_line.total if self.last_line else None

    def validated_at(self, step: int) -> bool:
        """Whether the validation due at a step is done."""
        # The last one is enough: a history holds no validation of a later step.
        return bool(self.validations) and self.validations[-1].step == step

    def improved_at(self, step: int) -> bool:
        """Whether the validation at a step was the best one so far."""
        return self.best is not None and self.best.step == step


def _merged(before: Sequence[SourceSums], step: Sequence[SourceSums]) -> tuple[SourceSums, ...]:
    """Sums by source: a step need not have samples of each."""
    found = {one.source: one for one in before}
    for one in step:
        found[one.source] = found[one.source].plus(one) if one.source in found else one
    return tuple(found.values())
