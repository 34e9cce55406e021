"""The guard and the choice of the best checkpoint, on numbers alone."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from indextts_job.checkpoint.history import (
    GuardHistory,
    History,
    LanguageLoss,
    LanguageResult,
    Losses,
    SpeakingHistory,
    SpeakingResult,
    Speech,
)
from indextts_job.errors import ConfigError
from indextts_job.speaking.config import SpeakingConfig
from indextts_job.speaking.rule import SpeakingRule
from indextts_job.training.guard import (
    GuardConfig,
    SampleSums,
    after_validation,
    baseline,
    beats,
    best_of,
    breach_text,
    breaches,
    demand_same_records,
    explained,
    guard_error,
    inside,
    judged,
    last_good,
    passed_over,
    violated,
)
from indextts_job.training.quality import overfitting_text

RECORDS = 100
CONFIG = GuardConfig(keep=("en",), action="stop")
LOSSES = Losses(text_loss=1.0, mel_loss=2.0, mel_top1=0.5, total=1.8)


def sums(losses: Sequence[float], seed: int = 0, records: int = RECORDS) -> SampleSums:
    """Records of different lengths whose code losses per target are these, one or one for each."""
    targets = np.random.default_rng(seed).integers(20, 200, records)
    each = np.broadcast_to(np.asarray(losses, float), records)
    return SampleSums(
        text=[1.0] * records,
        mel=(each * targets).tolist(),
        text_targets=[10] * records,
        mel_targets=targets.tolist(),
    )


def history(*rises: float, config: GuardConfig = CONFIG, records: int = RECORDS) -> GuardHistory:
    """The base, and a validation for each rise of English; the new language stays where it is."""
    guard = baseline({"en": sums([2.0], records=records), "am": sums([5.0])}, config)
    for number, rise in enumerate(rises, start=1):
        found = {"en": sums([2.0 + rise], records=records), "am": sums([4.0])}
        guard = judged(guard, 10 * number, found, config)
    return guard


def test_a_rise_is_measured_against_the_same_records() -> None:
    (result,) = history(0.03).results
    english = next(loss for loss in result.languages if loss.language == "en")
    assert english.rise == pytest.approx(0.03)
    assert english.rise_error == pytest.approx(0, abs=1e-9)
    assert next(loss for loss in result.languages if loss.language == "am").rise is None


def test_the_error_is_that_of_the_difference() -> None:
    random = np.random.default_rng(1)
    noise = random.normal(0, 0.5, (400, RECORDS))
    guard = baseline({"en": sums([2.0])}, CONFIG)
    results = [judged(guard, 1, {"en": sums((2.0 + row).tolist())}, CONFIG).results[0].languages[0] for row in noise]
    rises = [result.rise for result in results if result.rise is not None]
    errors = [result.rise_error for result in results if result.rise_error is not None]
    # The spread of the rises over repetitions is what each error says.
    assert np.mean(errors) == pytest.approx(np.std(rises), rel=0.15)


def test_the_error_of_records_of_one_length_is_that_of_a_mean() -> None:
    def two(first: float, second: float) -> SampleSums:
        return SampleSums(text=[1.0] * 2, mel=[10 * first, 10 * second], text_targets=[5] * 2, mel_targets=[10] * 2)

    (found,) = judged(baseline({"en": two(2.0, 2.0)}, CONFIG), 1, {"en": two(2.1, 2.3)}, CONFIG).results[0].languages
    assert found.rise == pytest.approx(0.2)
    assert found.rise_error == pytest.approx(0.1)  # 0.1 and 0.3: a standard deviation of sqrt(0.02), over sqrt(2)


def test_a_rise_counts_beyond_doubt_only() -> None:
    random = np.random.default_rng(2)
    doubtful = 2.0 + 0.06 + random.normal(0, 1.0, RECORDS)
    guard = judged(baseline({"en": sums([2.0])}, CONFIG), 10, {"en": sums(doubtful.tolist())}, CONFIG)
    assert not breaches(guard, CONFIG)
    assert breaches(history(0.06), CONFIG) == {"en": 1}
    assert not breaches(history(0.049), CONFIG)


def test_patience_counts_in_a_row() -> None:
    assert guard_error(history(0.06), CONFIG) is None
    assert guard_error(history(0.06, 0.01, 0.06), CONFIG) is None
    error = guard_error(history(0.01, 0.06, 0.07), CONFIG)
    assert error is not None
    assert error.exit_code == 79
    assert "en has risen by 0.0700" in str(error)
    assert "step 10 is the last one inside" in str(error)
    assert guard_error(history(0.06, 0.07), replace(CONFIG, action="warn")) is None
    assert "2 validations in a row" in breach_text(history(0.06, 0.07), CONFIG)
    assert not breach_text(history(0.06, 0.01), CONFIG)


def test_few_records_are_measured_and_never_acted_on() -> None:
    few = history(0.5, 0.5, records=63)
    assert not breaches(few, CONFIG)
    assert not violated(few.results[-1], CONFIG)
    assert not inside(few.results[-1], CONFIG), "nothing is known of it, so no checkpoint is called good"
    assert last_good(few, CONFIG) is None
    assert explained(few, 10, CONFIG)[0][3] == "not judged"
    assert few.results[-1].languages[1].rise == pytest.approx(0.5)
    assert breaches(history(0.5, records=64), CONFIG) == {"en": 1}


def test_the_present_settings_count_not_those_of_then() -> None:
    """What a stop advises has to lift it."""
    guard = history(0.06, 0.07)
    assert guard_error(guard, CONFIG) is not None
    for lifted in (
        replace(CONFIG, bound=0.1),
        replace(CONFIG, keep=()),
        replace(CONFIG, minimum_samples=101),
        replace(CONFIG, patience=3),
        replace(CONFIG, action="warn"),
    ):
        assert guard_error(guard, lifted) is None, lifted
    assert last_good(guard, CONFIG) is None
    assert last_good(guard, replace(CONFIG, bound=0.1)) == 20


def test_what_is_not_a_number_is_above_and_never_the_best() -> None:
    broken = result(20, math.nan, math.nan)
    assert violated(broken, CONFIG)
    assert not inside(broken, CONFIG)
    assert beats(result(30, 9.0, 0.01), broken, CONFIG)
    assert not beats(broken, result(30, 9.0, 0.01), CONFIG)


def test_a_validation_before_a_language_was_kept_is_not_inside() -> None:
    before = LanguageResult(
        step=10,
        languages=(
            LanguageLoss(language="am", samples=100, text_loss=1.0, mel_loss=1.0),
            LanguageLoss(language="en", samples=100, text_loss=1.0, mel_loss=9.0),
        ),
    )
    assert not inside(before, CONFIG)
    assert beats(result(20, 4.0, 0.01), before, CONFIG)
    assert best_of([before, result(20, 4.0, 0.01), result(30, 3.0, 0.02), result(40, 2.0, 0.3)], CONFIG) == 30
    assert best_of([], CONFIG) is None


def test_other_records_are_refused_also_of_the_same_lengths() -> None:
    guard = baseline({"en": sums([2.0])}, CONFIG, {"en": "one", "am": "two"})
    demand_same_records(guard, {"en": "one", "am": "three"}, CONFIG)
    demand_same_records(guard, {}, replace(CONFIG, keep=()))
    with pytest.raises(ConfigError, match="the validation records of en are not those"):
        demand_same_records(guard, {"en": "other"}, CONFIG)
    with pytest.raises(ConfigError, match="the validation records of en are not those"):
        demand_same_records(guard, {}, CONFIG)


def test_a_target_that_falls_is_no_overfitting() -> None:
    """English stays above its bound, so no validation is better; but the losses fall."""
    found = History(guard=baseline({"en": sums([2.0]), "am": sums([5.0])}, CONFIG))
    for step, total in enumerate([4.7, 4.6, 4.5, 4.4, 4.3, 4.4, 4.5, 4.6], start=1):
        found = found.after_step(replace(LOSSES, total=5.0 - 0.1 * step), 1.0)
        by_language = {"en": sums([2.0 + 0.1 * step]), "am": sums([total])}
        found = after_validation(found, step, (replace(LOSSES, total=total), by_language), 3, CONFIG)
        assert found.validations_without_improvement == step - 1
        assert found.overfitting_since == (8 if step == 8 else None)
    assert "the last 3 validations are worse than that of step 5 (4.6000, 4.3000 then)" in overfitting_text(found)


def result(step: int, target: float, rise: float, other: float | None = None) -> LanguageResult:
    losses = [
        LanguageLoss(language="am", samples=100, text_loss=1.0, mel_loss=target),
        LanguageLoss(language="en", samples=100, text_loss=1.0, mel_loss=2.0 + rise, rise=rise, rise_error=0.0),
    ]
    if other is not None:
        losses.append(LanguageLoss(language="tr", samples=1000, text_loss=1.0, mel_loss=other))
    return LanguageResult(step=step, languages=tuple(losses))


@pytest.mark.parametrize(
    ("incumbent", "candidate", "wins"),
    [
        (None, result(10, 4.0, 0.9), True),
        (result(10, 4.0, 0.01), result(20, 3.0, 0.02), True),
        (result(10, 4.0, 0.01), result(20, 3.0, 0.06), False),
        (result(10, 3.0, 0.06), result(20, 4.0, 0.01), True),
        (result(10, 4.0, 0.04), result(20, 4.001, 0.01), True),
        (result(10, 4.0, 0.01), result(20, 3.999, 0.01), False),
        (result(10, 3.0, 0.09), result(20, 9.0, 0.07), True),
        (result(10, 9.0, 0.07), result(20, 3.0, 0.09), False),
        (result(10, 4.0, 0.01, 4.0), result(20, 3.0, 0.01, 4.9), True),
        (result(10, 4.0, 0.01, 4.0), result(20, 3.0, 0.01, 5.1), False),
    ],
    ids=[
        "the first",
        "lower loss, both inside",
        "lower loss, but outside",
        "inside beats outside",
        "a tie goes to the lower rise",
        "a tie with equal rises goes to the earlier",
        "of two outside the lower rise",
        "of two outside not the lower loss",
        "by languages, not by samples",
        "by languages, not by the better one",
    ],
)
def test_which_is_better(incumbent: LanguageResult | None, candidate: LanguageResult, *, wins: bool) -> None:
    assert beats(candidate, incumbent, CONFIG) is wins


def test_the_history_keeps_the_best_one_and_explains_it() -> None:
    found = History(guard=baseline({"en": sums([2.0]), "am": sums([5.0])}, CONFIG))
    for step, (target, rise) in enumerate([(4.0, 0.01), (3.0, 0.02), (2.5, 0.2), (3.5, 0.0)], start=1):
        by_language = {"en": sums([2.0 + rise]), "am": sums([target])}
        found = after_validation(found, 10 * step, (LOSSES, by_language), 0, CONFIG)
    assert found.best is not None
    assert found.best.step == 20
    assert found.validations_without_improvement == 2
    assert found.guard is not None
    assert explained(found.guard, found.best.step, CONFIG) == [
        (10, "4.0000", "+0.0100", "yes", ""),
        (20, "3.0000", "+0.0200", "yes", "best"),
        (30, "2.5000", "+0.2000", "no", ""),
        (40, "3.5000", "+0.0000", "yes", ""),
    ]
    (why,) = passed_over(found, found.best.step, CONFIG)
    assert why == "step 30 has a lower loss (2.5000) but is outside guard.bound: en +0.2000"
    # By settings that allow more it would have been the best one.
    (why,) = passed_over(found, found.best.step, replace(CONFIG, bound=1.0))
    assert "was passed over by the settings of its time, and the best one stays until a better one comes" in why


ON = SpeakingConfig(mode="greedy")


def heard(*no_stops: int, agreements: Sequence[float] = (), rank: str = "loss") -> SpeakingRule:
    """What was spoken at the steps 10, 20, …: records without a stop, of 32."""
    results = []
    for number, no_stop in enumerate(no_stops):
        speech = replace(SPEECH, no_stop=no_stop, agreement=agreements[number] if agreements else None)
        results.append(SpeakingResult(step=10 * number + 10, whole=speech, languages=(speech,)))
    config = replace(ON, rank=rank)  # type: ignore[arg-type]
    return SpeakingRule(SpeakingHistory(records="x", results=tuple(results)), config, ("en",))


SPEECH = Speech(
    language="am", records=32, no_stop=0, early_stop=0, loops=0, silence=0, special=0, length_ratio=1.0, length_p5=0.9,
    length_p95=1.1, longest_run_s=0.2, distinct=1.0, prefix_same=0.1, entropy=2.0,
)  # fmt: skip
OF_ITS_TIME = "was passed over by the settings of its time, and the best one stays until a better one comes"
UNMEASURED = LanguageResult(step=20, languages=(LanguageLoss(language="am", samples=100, text_loss=1.0, mel_loss=3.0),))


@pytest.mark.parametrize(
    ("best", "other", "spoken", "reason"),
    [
        (result(10, 4.0, 0.01), result(20, 3.0, 0.2), heard(), "is outside guard.bound: en +0.2000"),
        (result(10, 4.0, 0.01), UNMEASURED, heard(), "is outside guard.bound: a kept language was not measured"),
        (result(10, 4.0, 0.01), result(20, 3.0, 0.01), heard(0, 32), "speaks badly: am: no_stop 32 of 32"),
        (
            result(10, 4.0, 0.01),
            result(20, 3.0, 0.2),
            heard(0, 32),
            "is outside guard.bound: en +0.2000; speaks badly: am: no_stop 32 of 32",
        ),
        (
            result(10, 4.0, 0.07),
            result(20, 3.0, 0.2),
            heard(),
            "a kept language has risen more: +0.2000 against +0.0700 nats per code",
        ),
        (
            result(10, 4.0, 0.01),
            result(20, 3.999, 0.02),
            heard(),
            "a kept language has risen more: +0.0200 against +0.0100 nats per code",
        ),
        (
            result(10, 4.0, 0.01),
            result(20, 3.0, 0.01),
            heard(0, 0, agreements=(0.4, 0.3), rank="agreement"),
            "agrees less with the references: 0.300 against 0.400",
        ),
        (result(10, 4.0, 0.01), result(20, 3.0, 0.01), heard(), OF_ITS_TIME),
    ],
    ids=[
        "outside the bound",
        "not measured",
        "speaks badly",
        "outside, and speaks badly",
        "both outside: the larger rise",
        "a tie: the larger rise",
        "agrees less",
        "nothing against it",
    ],
)
def test_why_a_lower_loss_beside_a_guard_is_not_the_best(
    best: LanguageResult, other: LanguageResult, spoken: SpeakingRule, reason: str
) -> None:
    equal = replace(best, step=30)
    found = History(guard=replace(baseline({"en": sums([2.0])}, CONFIG), results=(best, other, equal)))
    (text,) = passed_over(found, 10, CONFIG, spoken)
    loss = 3.999 if "0.0200" in reason else 3.0
    assert text.startswith(f"step 20 has a lower loss ({loss:.4f}) but {reason}")
    assert passed_over(found, 40, CONFIG, spoken) == [], "of a step that was not measured"


def test_without_kept_languages_the_whole_loss_counts() -> None:
    guard = replace(baseline({"en": sums([2.0])}, CONFIG), results=(result(10, 4.0, 0.01), result(20, 3.0, 0.2)))
    found = History(guard=guard)
    for step, total in ((10, 2.0), (20, 1.5)):
        found = found.after_validation(step, replace(LOSSES, total=total), improved=step == 10)
    (text,) = passed_over(found, 10, replace(CONFIG, keep=()), heard(0, 32))
    assert text.startswith("step 20 has a lower loss (1.5000) but speaks badly")
    (text,) = passed_over(replace(found, guard=None), 10, CONFIG, heard(0, 32))
    assert text.startswith("step 20 has a lower loss (1.5000) but speaks badly")


def test_sums_are_means_over_targets() -> None:
    losses = sums([2.0, *([4.0] * (RECORDS - 1))])
    weights = np.array(losses.mel_targets) / sum(losses.mel_targets)
    assert losses.mel_loss == pytest.approx(2.0 * weights[0] + 4.0 * weights[1:].sum())
    assert math.isclose(losses.text_loss, 0.1)
