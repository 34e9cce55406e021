"""The guard: has a language that the model spoke before become worse? And which checkpoint is the best one. Pure.

A kept language is measured on fixed records, before the first update and at every validation. Both losses are of the
same records, so their difference has a much smaller error than either: that of the mean difference per record.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Literal

from indextts_job.bounds import Bounds
from indextts_job.checkpoint.history import Baseline, GuardHistory, History, LanguageLoss, LanguageResult, Losses
from indextts_job.errors import ConfigError, GoalMissedError
from indextts_job.speaking.rule import SpeakingRule, passed_over_text

ERRORS = 2.0
"""Standard errors by which a rise has to exceed the bound."""
NO_RECORDS: Mapping[str, str] = MappingProxyType({})
TIE = 1e-3
"""Target losses that differ by less than this share are equal."""
NOTHING_SPOKEN = SpeakingRule()


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardConfig:
    """Languages that must not be forgotten, measured beside the new one."""

    keep: tuple[str, ...] = ()
    """Languages of the validation set that the model spoke before; empty = no guard."""
    bound: Annotated[float, Bounds(0, 1e3)] = 0.05
    """Rise of the code loss above that of the base, in nats per code, that is accepted. The public recipe's value."""
    action: Literal["warn", "stop"] = "warn"
    """What happens above the bound: a warning, or the end of the run, committed, with exit code 79."""
    patience: Annotated[int, Bounds(1, 10**6)] = 2
    """Validations in a row above the bound until then."""
    minimum_samples: Annotated[int, Bounds(2, 10**9)] = 64
    """With fewer records a language is measured and never acted on. One record has no standard error."""


@dataclass(frozen=True, slots=True)
class SampleSums:
    """Loss sums of the records of one language, in the order of the validation set."""

    text: Sequence[float]
    mel: Sequence[float]
    text_targets: Sequence[int]
    mel_targets: Sequence[int]

    @property
    def text_loss(self) -> float:
        """Mean over targets."""
        return math.fsum(self.text) / sum(self.text_targets)

    @property
    def mel_loss(self) -> float:
        """Mean over targets."""
        return math.fsum(self.mel) / sum(self.mel_targets)


def unmeasured(history: GuardHistory | None, config: GuardConfig) -> list[str]:
    """Languages to keep that the base was not measured on: all of them before the first update."""
    known = {one.language for one in history.baselines} if history else set()
    return [language for language in config.keep if language not in known]


def baseline(
    by_language: Mapping[str, SampleSums], config: GuardConfig, records: Mapping[str, str] = NO_RECORDS
) -> GuardHistory:
    """The history of the guard before the first update.

    Args:
        by_language: Losses of the base.
        config: The languages to keep.
        records: By language, what identifies the records of the validation set.
    """
    kept = {language: by_language[language] for language in config.keep}
    return GuardHistory(
        baselines=tuple(
            Baseline(
                language=language,
                mel=tuple(sums.mel),
                targets=tuple(sums.mel_targets),
                records=records.get(language, ""),
            )
            for language, sums in kept.items()
        )
    )


def demand_same_records(history: GuardHistory, records: Mapping[str, str], config: GuardConfig) -> None:
    """Check that rises can be computed: record by record, the base was measured on what is validated now.

    Args:
        history: What the base was measured on.
        records: By language, what identifies the records of the validation set.
        config: The languages to keep; others may have other records.

    Raises:
        ConfigError: A language to keep has other records.
    """
    before = {one.language: one.records for one in history.baselines}
    changed = [one for one in config.keep if before.get(one) and before[one] != records.get(one)]
    if changed:
        raise ConfigError(
            f"the validation records of {', '.join(changed)} are not those that the base was measured on. Restore "
            "data.validation_manifests and validation.max_samples, leave the language out of guard.keep, or start a "
            "new run."
        )


def baseline_text(by_language: Mapping[str, SampleSums], config: GuardConfig) -> str:
    """What to tell about the base."""
    losses = ", ".join(f"{language} {by_language[language].mel_loss:.4f}" for language in config.keep)
    return f"the base, on languages to keep: code loss {losses}; a rise of {config.bound:g} is accepted"


def judged(
    history: GuardHistory, step: int, by_language: Mapping[str, SampleSums], config: GuardConfig
) -> GuardHistory:
    """The history with one more validation."""
    bases = {one.language: one for one in history.baselines if one.language in config.keep}
    losses = (_loss(language, sums, bases.get(language)) for language, sums in sorted(by_language.items()))
    return replace(history, results=(*history.results, LanguageResult(step=step, languages=tuple(losses))))


def _loss(language: str, sums: SampleSums, base: Baseline | None) -> LanguageLoss:
    loss = LanguageLoss(language=language, samples=len(sums.mel), text_loss=sums.text_loss, mel_loss=sums.mel_loss)
    if base is None:
        return loss
    total = sum(base.targets)
    # Sums and not means: a long record counts as many times as it has codes.
    differences = [now - before for now, before in zip(sums.mel, base.mel, strict=True)]
    rise = math.fsum(differences) / total
    squares = [
        (difference - rise * targets) ** 2 for difference, targets in zip(differences, base.targets, strict=True)
    ]
    count = len(differences)
    # Of a ratio of sums (Cochran 1977, Sampling Techniques, equation 6.13).
    error = math.sqrt(math.fsum(squares) * count / max(1, count - 1)) / total
    return replace(loss, rise=rise, rise_error=error)


# What a validation has shown is history; what follows from it is computed from the present settings. So a bound may be
# raised, and a language left out, without a memory of how it was judged before.


def _above(result: LanguageResult, config: GuardConfig) -> list[LanguageLoss]:
    """Kept languages that are worse than they may be, beyond doubt."""
    return [loss for loss in result.languages if loss.language in config.keep and _is_above(loss, config)]


def _is_above(loss: LanguageLoss, config: GuardConfig) -> bool:
    if loss.rise is None or loss.rise_error is None or loss.samples < config.minimum_samples:
        return False
    # Not `>`: what is not a number is above.
    return not loss.rise - ERRORS * loss.rise_error <= config.bound


def inside(result: LanguageResult, config: GuardConfig) -> bool:
    """Whether all kept languages were measured, on enough records, and none was above the bound."""
    enough = {
        loss.language
        for loss in result.languages
        if loss.rise is not None and loss.samples >= config.minimum_samples and not _is_above(loss, config)
    }
    return enough >= set(config.keep)


def violated(result: LanguageResult, config: GuardConfig) -> bool:
    """Whether a kept language was above the bound, or not measured yet. With too few records it counts as inside."""
    measured = {loss.language for loss in result.languages if loss.rise is not None}
    return bool(_above(result, config)) or not measured >= set(config.keep)


def breaches(history: GuardHistory, config: GuardConfig) -> dict[str, int]:
    """Kept languages above the bound at the last validation, and for how many in a row."""
    counts: dict[str, int] = {}
    worn = set(config.keep)
    for result in reversed(history.results):
        worn &= {loss.language for loss in _above(result, config)}
        for language in worn:
            counts[language] = counts.get(language, 0) + 1
    return {language: counts[language] for language in config.keep if language in counts}


def last_good(history: GuardHistory, config: GuardConfig) -> int | None:
    """Step of the last validation with all kept languages inside; None without one."""
    return next((result.step for result in reversed(history.results) if inside(result, config)), None)


def beats(
    candidate: LanguageResult,
    incumbent: LanguageResult | None,
    config: GuardConfig,
    spoken: SpeakingRule = NOTHING_SPOKEN,
) -> bool:
    """Whether a validation is better than the best so far.

    One inside the bounds beats one that is not. Of two inside, the lower code loss of the target languages, counted
    by languages and not by samples; of equal ones the lower largest rise, then the earlier. Of two outside, the lower
    largest rise. A step that breaks a limit of speaking is outside too; by its settings agreement comes before loss.
    """
    if incumbent is None:
        return True
    bad, bad_before = (_is_outside(one, config, spoken) for one in (candidate, incumbent))
    if bad != bad_before:
        return bad_before
    rise, rise_before = largest_rise(candidate, config), largest_rise(incumbent, config)
    if bad:
        return rise < rise_before
    preferred = spoken.preferred(candidate.step, incumbent.step)
    if preferred is not None:
        return preferred
    loss, loss_before = target_loss(candidate, config), target_loss(incumbent, config)
    if abs(loss - loss_before) <= TIE * loss_before:
        return rise < rise_before
    return loss < loss_before


def passed_over(history: History, best: int, config: GuardConfig, spoken: SpeakingRule = NOTHING_SPOKEN) -> list[str]:
    """Steps whose loss is lower than that of the best one, and why they are not the best.

    Args:
        history: All validations.
        best: Step of the best one.
        config: The languages to keep; with some, the loss is that of the others.
        spoken: What speaking has to say.
    """
    if not (history.guard and config.keep):
        return spoken.passed_over(history, best)
    by_step = {result.step: result for result in history.guard.results}
    return list(_passed_over(by_step, by_step[best], config, spoken)) if best in by_step else []


def _passed_over(
    results: Mapping[int, LanguageResult], best: LanguageResult, config: GuardConfig, spoken: SpeakingRule
) -> Iterator[str]:
    bound = target_loss(best, config)
    for step, result in results.items():
        loss = target_loss(result, config)
        if loss < bound:
            yield passed_over_text(step, loss, _against(result, best, config, spoken))


def _against(result: LanguageResult, best: LanguageResult, config: GuardConfig, spoken: SpeakingRule) -> str:
    """Why `beats` prefers the best one to a result with a lower loss; empty where it does not."""
    if beats(result, best, config, spoken):
        return ""
    if _is_outside(best, config, spoken):
        return _risen_more(result, best, config)
    if _is_outside(result, config, spoken):
        return "; ".join(filter(None, (_outside_text(result, config), spoken.speaks_badly(result.step))))
    return spoken.against(result.step, best.step) or _risen_more(result, best, config)


def _risen_more(result: LanguageResult, best: LanguageResult, config: GuardConfig) -> str:
    rises = f"{largest_rise(result, config):+.4f} against {largest_rise(best, config):+.4f} nats per code"
    return f"a kept language has risen more: {rises}"


def _outside_text(result: LanguageResult, config: GuardConfig) -> str:
    if not violated(result, config):
        return ""
    above = [f"{loss.language} {loss.rise:+.4f}" for loss in _above(result, config)]
    return f"is outside guard.bound: {', '.join(above) or 'a kept language was not measured'}"


def _is_outside(result: LanguageResult, config: GuardConfig, spoken: SpeakingRule) -> bool:
    return violated(result, config) or spoken.fails(result.step)


def best_of(
    results: Sequence[LanguageResult], config: GuardConfig, spoken: SpeakingRule = NOTHING_SPOKEN
) -> int | None:
    """Step of the best of some validations; None without one."""
    best: LanguageResult | None = None
    for result in results:
        best = result if beats(result, best, config, spoken) else best
    return best.step if best else None


def target_loss(result: LanguageResult, config: GuardConfig) -> float:
    """Mean code loss of the languages that are not kept; of all, if all are."""
    targets = [loss.mel_loss for loss in result.languages if loss.language not in config.keep]
    return math.fsum(targets or [loss.mel_loss for loss in result.languages]) / len(targets or result.languages)


def largest_rise(result: LanguageResult, config: GuardConfig) -> float:
    """Of all kept languages; infinite where one was not measured, 0 without one."""
    rises = {loss.language: loss.rise for loss in result.languages if loss.rise is not None}
    return max((rises.get(language, math.inf) for language in config.keep), default=0.0)


def guard_error(history: GuardHistory, config: GuardConfig) -> GoalMissedError | None:
    """The error that ends the run; None while it may go on."""
    if config.action != "stop":
        return None
    worn = [language for language, count in breaches(history, config).items() if count >= config.patience]
    if not worn:
        return None
    good = last_good(history, config)
    known = f"step {good} is the last one inside" if good is not None else "none was inside"
    return GoalMissedError(
        f"{breach_text(history, config)}; of the validated steps {known}. Everything is committed. Replay more of "
        f"{', '.join(worn)}, lower the learning rate, or raise guard.bound; guard.action=warn goes on."
    )


def breach_text(history: GuardHistory, config: GuardConfig) -> str:
    """What is above the bound at the last validation; empty if nothing is."""
    last = {loss.language: loss for loss in history.results[-1].languages} if history.results else {}
    texts = [
        f"{language} has risen by {last[language].rise:.4f} ± {last[language].rise_error:.4f} nats per code above the "
        f"base, {count} {'validation' if count == 1 else 'validations'} in a row"
        for language, count in breaches(history, config).items()
    ]
    return f"{'; '.join(texts)}; guard.bound is {config.bound:g}" if texts else ""


def violation_at(history: GuardHistory, step: int, config: GuardConfig) -> str:
    """What was above the bound at the validation of a step; empty if nothing was, or none was made there."""
    at = [loss for result in history.results if result.step == step for loss in _above(result, config)]
    above = [f"{loss.language} {loss.rise:+.4f} nats per code" for loss in at]
    return f"Above the base by more than {config.bound:g}: {', '.join(above)}" if above else ""


def explained(history: GuardHistory, best_step: int | None, config: GuardConfig) -> list[tuple[object, ...]]:
    """A row for each validation, for a table: step, target loss, largest rise, inside, and whether it is the best."""
    return [
        (
            result.step,
            f"{target_loss(result, config):.4f}",
            f"{largest_rise(result, config):+.4f}",
            "yes" if inside(result, config) else "no" if violated(result, config) else "not judged",
            "best" if result.step == best_step else "",
        )
        for result in history.results
    ]


def after_validation(
    history: History,
    step: int,
    found: tuple[Losses, Mapping[str, SampleSums]],
    overfitting_validations: int,
    config: GuardConfig,
    spoken: SpeakingRule = NOTHING_SPOKEN,
) -> History:
    """The history with a validation whose languages are told apart.

    Args:
        history: The history before.
        step: Step of the validation.
        found: Losses over all samples, and sums by language.
        overfitting_validations: See `History.after_validation`.
        config: The languages to keep.
        spoken: What speaking has to say, this validation included.
    """
    losses, by_language = found
    assert history.guard is not None  # noqa: S101  # the base was measured before
    guard = judged(history.guard, step, by_language, config)
    before = {one.step: one for one in guard.results}
    incumbent = before.get(history.best.step) if history.best else None
    improved = beats(guard.results[-1], incumbent, config, spoken)
    after = history.after_validation(step, losses, overfitting_validations, improved=improved)
    return replace(after, guard=guard)
