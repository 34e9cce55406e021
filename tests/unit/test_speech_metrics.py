"""Figures of spoken codes, on codes made by hand, and the limits that judge them."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from indextts_job.checkpoint.history import (
    History,
    LanguageLoss,
    LanguageResult,
    Losses,
    SpeakingHistory,
    SpeakingResult,
    Speech,
)
from indextts_job.speaking.config import SpeakingConfig, SpeakingLimits
from indextts_job.speaking.limits import broken, lower_bound
from indextts_job.speaking.metrics import (
    Heard,
    Scale,
    agreement,
    edit_distance,
    figures,
    has_loop,
    longest_run,
    prefix_same,
    repeats,
    tail_codes,
)
from indextts_job.speaking.rule import SpeakingRule, after_speaking
from indextts_job.training.guard import GuardConfig, beats

SCALE = Scale(codes_per_second=25, first_special=8192)
PLAIN = tuple(range(100))


def heard(codes: Sequence[int], number: int = 0, *, stopped: bool = True, expected: float | None = None) -> Heard:
    return Heard(
        key=f"r{number}",
        language="am",
        text=(number,),
        codes=tuple(codes),
        stopped=stopped,
        entropy=1.5,
        expected=float(len(PLAIN)) if expected is None else expected,
        reference=PLAIN if expected is None else None,
    )


@pytest.mark.parametrize(
    ("one", "figure", "value"),
    [
        (heard(PLAIN), "no_stop", 0),
        (heard(PLAIN, stopped=False), "no_stop", 1),
        (replace(heard(PLAIN, stopped=False), may_stop=False), "no_stop", 0),
        (heard(PLAIN[:49]), "early_stop", 1),
        (heard(PLAIN[:50]), "early_stop", 0),
        (heard(()), "early_stop", 1),
        (heard([7] * 25), "loops", 1),
        (heard([7] * 24), "loops", 0),
        (heard([7, 8] * 13), "loops", 1),
        (heard([7, 8] * 12), "loops", 0),
        (heard([1, 2, 3, 4, 5, 6, 7, 8] * 4), "loops", 1),
        (heard([1, 2, 3, 4, 5, 6, 7, 8] * 3), "loops", 0),
        (heard([*PLAIN[:7], *([1, 2, 3, 4, 5, 6, 7, 9] * 4)]), "loops", 1),
        (heard(list(range(9)) * 6), "loops", 0),
        (heard([*PLAIN, *([3] * 38)]), "silence", 1),
        (heard([*PLAIN, *([3] * 37)]), "silence", 0),
        (heard([*PLAIN, *([3] * 50)]), "longest_run_s", 2.0),
        (heard([1, 8191, 2]), "special", 0),
        (heard([1, 8192, 2]), "special", 1),
        (heard([*PLAIN, *PLAIN[:20]]), "length_ratio", 1.2),
        (heard(PLAIN, expected=80), "length_ratio", 1.25),
        (heard(PLAIN), "agreement", 1.0),
        (heard(PLAIN[:90]), "agreement", 0.9),
        (heard(PLAIN, expected=100), "agreement", None),
        (heard(PLAIN), "agreement_training_positions", None),
        (replace(heard(PLAIN), in_training=PLAIN[:80]), "agreement_training_positions", 0.8),
        (heard(PLAIN), "entropy", 1.5),
        (replace(heard(PLAIN), entropy=1.000049), "entropy", 1.0),
        (heard(PLAIN), "tail_codes", None),
    ],
)
def test_each_figure_of_one_record(one: Heard, figure: str, value: float | None) -> None:
    found = getattr(figures("am", [one], SCALE), figure)
    assert found == (None if value is None else pytest.approx(value, rel=1e-9))


def test_a_second_of_loop_is_longer_in_2_0() -> None:
    assert has_loop([7] * 25, 25)
    assert not has_loop([7] * 49, 50)
    assert has_loop([7] * 50, 50)


def test_figures_of_several_records() -> None:
    three = [heard(PLAIN, 0), heard(PLAIN[:50], 1), heard([5, *PLAIN], 2)]
    found = figures("am", three, SCALE)
    assert (found.language, found.records) == ("am", 3)
    assert found.length_ratio == pytest.approx(251 / 300)
    assert found.length_p5 == pytest.approx(np.percentile([1.0, 0.5, 1.01], 5))
    assert found.length_p95 == pytest.approx(np.percentile([1.0, 0.5, 1.01], 95))
    assert found.distinct == 1
    assert found.prefix_same == pytest.approx(50 / 3 / (251 / 3))
    assert found.agreement == pytest.approx((1 + 0.5 + 100 / 101) / 3)


def test_outputs_of_different_texts_that_are_equal_are_not_distinct() -> None:
    assert figures("am", [heard(PLAIN, number) for number in range(4)], SCALE).distinct == 0.25
    assert figures("am", [heard(PLAIN, 0)] * 4, SCALE).distinct == 1  # of one text they may be equal
    of_two = [heard(PLAIN, 0), replace(heard(PLAIN, 0), language="en")]
    assert figures("", of_two, SCALE).distinct == 1


def test_voices_that_speak_one_text_differently_do_not_hide_texts_that_sound_alike() -> None:
    voices = [heard((number,) * 9, 0) for number in range(6)]
    alike = [heard(PLAIN, number) for number in (1, 2, 3)]
    assert figures("am", [*voices, *alike], SCALE).distinct == 7 / 9


def test_the_common_beginnings_are_those_of_all_pairs() -> None:
    random = np.random.default_rng(3)
    for size in range(2, 40):
        found = [
            ((int(random.integers(0, 1 + size // 3)),), tuple(random.integers(0, 2, random.integers(0, 9)).tolist()))
            for _ in range(size)
        ]
        pairs = [
            sum(1 for _ in itertools.takewhile(lambda both: both[0] == both[1], zip(one, two, strict=False)))
            for (text, one), (other, two) in itertools.combinations(found, 2)
            if text != other
        ]
        length = sum(len(codes) for _, codes in found) / size
        expected = sum(pairs) / len(pairs) / length if pairs and length else 0.0
        assert prefix_same(found) == pytest.approx(expected, abs=1e-12)


def test_common_beginnings_of_different_texts_count_and_those_of_one_text_do_not() -> None:
    assert prefix_same([((1,), PLAIN), ((2,), PLAIN)]) == 1
    assert prefix_same([((1,), PLAIN), ((1,), PLAIN)]) == 0
    assert prefix_same([((1,), PLAIN[:10]), ((2,), PLAIN[5:15])]) == 0
    assert prefix_same([((1,), ()), ((2,), ())]) == 0


def test_the_share_of_tail_codes() -> None:
    scale = replace(SCALE, tails=frozenset({3, 4}))
    assert figures("am", [heard([1, 2, 3, 4, 4])], scale).tail_codes == pytest.approx(0.6)
    assert figures("am", [heard([])], scale).tail_codes == 0


def test_tail_codes_are_those_that_stand_at_the_ends_ten_times_as_often() -> None:
    random = np.random.default_rng(0)
    records = [np.concatenate([random.integers(10, 60, 90), [5] * 9, [11]]) for _ in range(20)]
    assert tail_codes(records, 10, 64) == {5}
    assert tail_codes([random.integers(0, 60, 100) for _ in range(20)], 10, 64) == frozenset()


def slow_distance(one: Sequence[int], other: Sequence[int]) -> int:
    if not one or not other:
        return len(one) + len(other)
    if one[0] == other[0]:
        return slow_distance(one[1:], other[1:])
    pairs = ((one[1:], other), (one, other[1:]), (one[1:], other[1:]))
    return 1 + min(slow_distance(*pair) for pair in pairs)


def test_the_edit_distance_is_that_of_its_definition() -> None:
    random = np.random.default_rng(1)
    for first, second in itertools.product(range(6), range(6)):
        one, other = random.integers(0, 3, first).tolist(), random.integers(0, 3, second).tolist()
        assert edit_distance(one, other) == slow_distance(one, other)
    assert agreement((), ()) == 1


def test_runs_and_repeats() -> None:
    assert longest_run([]) == 0
    assert longest_run([1, 2, 2, 2, 1]) == 3
    assert repeats(np.array([1, 2, 1, 2, 1]), 2) == 2
    assert repeats(np.array([1]), 2) == 0
    assert repeats(np.array([1, 2, 3]), 2) == 1


@pytest.mark.parametrize(("bad", "count"), [(1, 32), (2, 32), (3, 32), (5, 8), (8, 8), (40, 320)])
def test_the_bound_of_a_share_is_exact(bad: int, count: int) -> None:
    share = lower_bound(bad, count)
    tail = math.fsum(
        math.comb(count, number) * share**number * (1 - share) ** (count - number) for number in range(bad, count + 1)
    )
    assert tail == pytest.approx(0.05)


def test_of_32_records_one_or_two_are_no_alarm_and_three_are() -> None:
    assert [lower_bound(bad, 32) > 0.02 for bad in range(4)] == [False, False, False, True]
    assert lower_bound(0, 32) == 0
    assert lower_bound(8, 8) == pytest.approx(0.05 ** (1 / 8))


GOOD = Speech(
    language="am",
    records=32,
    no_stop=0,
    early_stop=0,
    loops=0,
    silence=0,
    special=0,
    length_ratio=1.0,
    length_p5=0.9,
    length_p95=1.1,
    longest_run_s=0.2,
    distinct=1.0,
    prefix_same=0.1,
    entropy=2.0,
    agreement=0.3,
)


@pytest.mark.parametrize(
    ("figure", "inside", "beyond"),
    [
        ("no_stop", 2, 3),
        ("early_stop", 2, 3),
        ("loops", 2, 3),
        ("silence", 2, 3),
        ("special", 0, 1),
        ("length_ratio", 0.8, 0.79),
        ("length_ratio", 1.25, 1.26),
        ("distinct", 0.95, 0.94),
        ("prefix_same", 0.3, 0.31),
    ],
)
def test_each_limit(figure: str, inside: float, beyond: float) -> None:
    def found(**figures: Any) -> list[str]:
        return broken(replace(GOOD, **figures), SpeakingLimits())

    assert not found(**{figure: inside})
    (text,) = found(**{figure: beyond})
    assert text.startswith(f"am: {figure} ")
    assert not found(**{figure: beyond, "records": 7})


def test_the_least_number_of_records_is_a_setting() -> None:
    all_bad = replace(GOOD, no_stop=7, records=7)
    assert broken(all_bad, SpeakingLimits(minimum_records=7))


def result(step: int, *languages: Speech) -> SpeakingResult:
    return SpeakingResult(step=step, whole=replace(GOOD, language=""), languages=languages or (GOOD,))


BAD = replace(GOOD, no_stop=32)
ON = SpeakingConfig(mode="greedy")
BY_AGREEMENT = SpeakingConfig(mode="greedy", rank="agreement")


def told(total: float) -> Losses:
    return Losses(text_loss=1.0, mel_loss=total, mel_top1=0.5, total=total)


@pytest.mark.parametrize(
    ("config", "results", "losses", "best"),
    [
        (ON, [result(1), result(2)], [2.0, 1.0], 2),
        (ON, [result(1), result(2, BAD)], [2.0, 1.0], 1),
        (ON, [result(1, BAD), result(2)], [1.0, 2.0], 2),
        (ON, [result(1, BAD), result(2, BAD)], [2.0, 1.0], 2),
        (ON, [result(1), result(2, GOOD, replace(BAD, language="en"))], [2.0, 1.0], 1),
        (ON, [result(2, BAD)], [2.0, 1.0], 1),
        (replace(ON, mode="off"), [result(1), result(2, BAD)], [2.0, 1.0], 2),
        (BY_AGREEMENT, [result(1, replace(GOOD, agreement=0.4)), result(2)], [2.0, 1.0], 1),
        (BY_AGREEMENT, [result(1), result(2, replace(GOOD, agreement=0.4))], [1.0, 2.0], 2),
        (BY_AGREEMENT, [result(1), result(2)], [2.0, 1.0], 2),
        (BY_AGREEMENT, [result(1), result(2, replace(BAD, agreement=0.9))], [2.0, 1.0], 1),
        (BY_AGREEMENT, [result(1, BAD), result(2, replace(BAD, agreement=0.9))], [1.0, 2.0], 1),
    ],
    ids=[
        "two that pass: the loss",
        "lower loss, but it fails",
        "one that passes beats one that fails",
        "two that fail: the loss",
        "one language is enough",
        "a step without a result does not fail",
        "the check is off now",
        "higher agreement beats lower loss",
        "higher agreement, higher loss",
        "equal agreement: the loss",
        "agreement does not save one that fails",
        "two that fail: the loss, whatever their agreement",
    ],
)
def test_which_is_the_best(
    config: SpeakingConfig, results: list[SpeakingResult], losses: list[float], best: int
) -> None:
    rule = SpeakingRule(SpeakingHistory(records="x", results=tuple(results)), config)
    history = History()
    for step, total in enumerate(losses, start=1):
        better = rule.improves(history, step, told(total))
        history = history.after_validation(step, told(total), improved=better)
    assert history.best is not None
    assert history.best.step == best


def judged(config: SpeakingConfig, *speeches: Speech | None) -> tuple[SpeakingRule, History]:
    """A rule, and a history with a validation for each speech, the first one with the highest loss."""
    results = tuple(result(step, speech) for step, speech in enumerate(speeches, start=1) if speech)
    history = History()
    for step in range(1, len(speeches) + 1):
        history = history.after_validation(step, told(4.0 - step), improved=False)
    return SpeakingRule(SpeakingHistory(records="x", results=results), config), history


OF_ITS_TIME = "was passed over by the settings of its time, and the best one stays until a better one comes"


def test_a_step_with_a_lower_loss_that_is_not_the_best_is_explained() -> None:
    better = replace(GOOD, agreement=0.4)
    badly = "speaks badly: am: no_stop 32 of 32"

    def reason(config: SpeakingConfig, best: Speech | None, other: Speech | None) -> str:
        rule, history = judged(config, best, other)
        (text,) = rule.passed_over(history, 1)
        assert text.startswith("step 2 has a lower loss (2.0000) but ")
        return text.removeprefix("step 2 has a lower loss (2.0000) but ").partition(",")[0]

    assert reason(ON, GOOD, BAD) == badly
    assert reason(BY_AGREEMENT, better, BAD) == badly
    assert reason(ON, BAD, BAD) == OF_ITS_TIME.partition(",")[0], "the best one breaks limits too"
    assert reason(BY_AGREEMENT, better, GOOD) == "agrees less with the references: 0.300 against 0.400"
    assert reason(BY_AGREEMENT, replace(BAD, agreement=0.9), GOOD) == OF_ITS_TIME.partition(",")[0]
    assert reason(BY_AGREEMENT, GOOD, better) == OF_ITS_TIME.partition(",")[0]
    assert reason(BY_AGREEMENT, None, GOOD) == OF_ITS_TIME.partition(",")[0]
    assert reason(ON, GOOD, GOOD) == OF_ITS_TIME.partition(",")[0]
    rule, history = judged(ON, GOOD, BAD, GOOD)
    assert [text.partition(" has")[0] for text in rule.passed_over(history, 2)] == ["step 3"]
    assert rule.passed_over(history, 9) == [], "of a validation that is not known"


def test_a_table_tells_what_was_not_heard_from_what_passes() -> None:
    rule, _ = judged(ON, GOOD, BAD, None)
    assert [rule.columns(step) for step in (1, 2, 3)] == [("passes", "0.300"), ("fails", "0.300"), ("not heard", "")]
    assert rule.heard_any
    assert not judged(ON, None)[0].heard_any
    assert not judged(replace(ON, mode="off"), GOOD)[0].heard_any
    assert not SpeakingRule(None, ON).heard_any


def measured(step: int, loss: float, rise: float) -> LanguageResult:
    kept = LanguageLoss(language="en", samples=100, text_loss=1.0, mel_loss=2.0 + rise, rise=rise, rise_error=0.0)
    learned = LanguageLoss(language="am", samples=100, text_loss=1.0, mel_loss=loss)
    return LanguageResult(step=step, languages=(learned, kept))


@pytest.mark.parametrize(
    ("config", "speech", "candidate", "wins"),
    [
        (ON, (GOOD, GOOD), measured(2, 3.0, 0.01), True),
        (ON, (GOOD, BAD), measured(2, 3.0, 0.01), False),
        (ON, (BAD, GOOD), measured(2, 5.0, 0.01), True),
        (ON, (BAD, GOOD), measured(2, 3.0, 0.09), False),
        (ON, (GOOD, GOOD), measured(2, 3.0, 0.09), False),
        (ON, (BAD, BAD), measured(2, 3.0, 0.02), False),
        (ON, (BAD, BAD), measured(2, 5.0, 0.005), True),
        (BY_AGREEMENT, (GOOD, replace(GOOD, agreement=0.4)), measured(2, 5.0, 0.01), True),
        (BY_AGREEMENT, (replace(GOOD, agreement=0.4), GOOD), measured(2, 3.0, 0.01), False),
    ],
    ids=[
        "both pass: the loss",
        "lower loss, but it speaks badly",
        "higher loss, but the other speaks badly",
        "both outside, by speech and by rise: the lower rise",
        "a rise beyond the bound",
        "both speak badly: the lower rise stays",
        "both speak badly: the lower rise wins",
        "higher agreement",
        "lower agreement",
    ],
)
def test_which_is_better_beside_a_guard(
    config: SpeakingConfig, speech: tuple[Speech, Speech], candidate: LanguageResult, *, wins: bool
) -> None:
    spoken = SpeakingHistory(records="x", results=(result(1, speech[0]), result(2, speech[1])))
    rule = SpeakingRule(spoken, config, ("en",))
    incumbent = measured(1, 4.0, 0.01)
    assert beats(candidate, incumbent, GuardConfig(keep=("en",)), rule) is wins


def test_agreement_is_that_of_the_languages_that_are_learned() -> None:
    english = replace(GOOD, language="en", agreement=0.9)
    history = SpeakingHistory(records="x", results=(result(1, GOOD, english),))
    assert SpeakingRule(history, ON, ("en",)).agreement(1) == pytest.approx(0.3)
    assert SpeakingRule(history, ON).agreement(1) == pytest.approx(0.6)
    assert SpeakingRule(history, ON, ("en", "am")).agreement(1) == pytest.approx(0.6)
    assert SpeakingRule(history, ON).agreement(2) is None


def test_results_follow_each_other() -> None:
    one = replace(History(), speaking=after_speaking(History(), "x", result(1)))
    two = after_speaking(one, "x", result(2))
    assert [found.step for found in two.results] == [1, 2]
