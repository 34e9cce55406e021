"""The check inside a validation: what the history gets, what is told, and one warning when it takes too long."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from indextts_job.checkpoint.history import (
    Baseline,
    GuardHistory,
    History,
    LanguageLoss,
    LanguageResult,
    Losses,
    SpeakingResult,
    Speech,
)
from indextts_job.loop.speaking import Speaker
from indextts_job.report.events import Event, Notice, Spoke
from indextts_job.speaking.config import SpeakingConfig
from indextts_job.training.guard import GuardConfig

ON = SpeakingConfig(mode="greedy")
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
)


class Voice:
    """Speaks for some seconds of a clock that only it moves."""

    def __init__(self, seconds: float, speech: Speech = GOOD) -> None:
        self.now_s = 0.0
        self.steps: list[int] = []
        self._seconds, self._speech = seconds, speech

    def says(self, speech: Speech) -> None:
        self._speech = speech

    def clock(self) -> float:
        return self.now_s

    def speak(self, step: int, interrupted: Callable[[int], bool]) -> tuple[str, SpeakingResult] | None:
        self.steps.append(step)
        self.now_s += self._seconds
        result = SpeakingResult(step=step, whole=replace(self._speech, language=""), languages=(self._speech,))
        return None if interrupted(0) else ("records", result)


def never(_done: int) -> bool:
    return False


def spoken_at(voice: Voice, config: SpeakingConfig, *times_s: float) -> tuple[History, list[Event]]:
    told: list[Event] = []
    speaker, history = Speaker(config, GuardConfig(), voice, told.append, voice.clock), History()
    for step, time_s in enumerate(times_s, start=1):
        voice.now_s = time_s
        after = speaker.spoken(history, step, never)
        assert after is not None
        history = after
    return history, told


@pytest.mark.parametrize(
    ("seconds", "times_s", "warnings"),
    [
        (2.0, (0.0, 100.0, 200.0), 0),  # 2 of 100
        (2.1, (0.0, 100.0, 200.0, 300.0), 1),
        (50.0, (0.0,), 0),  # nothing before it to compare with
        (1.0, (0.0, 300.0, 310.0), 1),
    ],
)
def test_a_check_beyond_its_budget_is_one_warning(seconds: float, times_s: tuple[float, ...], warnings: int) -> None:
    history, told = spoken_at(Voice(seconds), ON, *times_s)
    notices = [event for event in told if isinstance(event, Notice)]
    assert len(notices) == warnings
    assert all(event.warning and "speaking.budget is 2.0%" in event.message for event in notices)
    assert history.speaking is not None
    assert len(history.speaking.results) == len(times_s), "no record is left out for it"


def test_what_is_broken_is_told_by_language() -> None:
    _, told = spoken_at(Voice(1.0, replace(GOOD, no_stop=32)), ON, 0.0)
    (event,) = (event for event in told if isinstance(event, Spoke))
    assert event.seconds == 1.0
    assert [text.partition(",")[0] for text in event.broken] == ["am: no_stop 32 of 32"]
    # `report.command` hears of warnings alone.
    (notice,) = (event for event in told if isinstance(event, Notice))
    assert (notice.step, notice.topic, notice.warning) == (1, "speaking", True)
    assert "it is not the best checkpoint while another passes: am: no_stop 32 of 32" in notice.message


def test_a_stop_for_lack_of_improvement_tells_which_lower_losses_did_not_count() -> None:
    voice, told = Voice(1.0), list[Event]()
    speaker, history = Speaker(ON, GuardConfig(), voice, told.append, voice.clock), History()
    assert speaker.why_not_better(history) == []
    for step, (total, speech) in enumerate([(2.0, "bad"), (3.0, "good"), (2.5, "bad"), (4.0, "good")], start=1):
        voice.says(GOOD if speech == "good" else replace(GOOD, no_stop=32))
        history = speaker.spoken(history, step, never) or history
        losses = Losses(text_loss=1.0, mel_loss=total, mel_top1=0.5, total=total)
        better = speaker.rule(history).improves(history, step, losses)
        history = history.after_validation(step, losses, improved=better)
    assert history.best is not None
    assert history.best.step == 2
    # The first one came before the best one, so it is none of those that were waited for in vain.
    (reason,) = speaker.why_not_better(history)
    assert reason.startswith("step 3 has a lower loss (2.5000) but speaks badly: am: no_stop 32 of 32")


def test_beside_a_guard_too_only_what_came_behind_the_best_one_is_told() -> None:
    guard = GuardConfig(keep=("en",), action="warn")
    baseline = Baseline(language="en", mel=(2.0,), targets=(1,))
    history = History(guard=GuardHistory(baselines=(baseline,)))
    for step, target, rise in ((10, 2.0, 0.2), (20, 4.0, 0.01), (30, 3.0, 0.2)):
        languages = (
            LanguageLoss(language="am", samples=9, text_loss=1.0, mel_loss=target),
            LanguageLoss(language="en", samples=9, text_loss=1.0, mel_loss=2.0 + rise, rise=rise, rise_error=0.0),
        )
        assert history.guard is not None
        results = (*history.guard.results, LanguageResult(step=step, languages=languages))
        losses = Losses(text_loss=1.0, mel_loss=target, mel_top1=0.5, total=target)
        history = replace(history, guard=replace(history.guard, results=results))
        history = history.after_validation(step, losses, improved=step == 20)
    voice = Voice(1.0)
    (reason,) = Speaker(SpeakingConfig(), guard, voice, list[Event]().append, voice.clock).why_not_better(history)
    assert reason.startswith("step 30 has a lower loss (3.0000)")


def test_nothing_is_spoken_where_the_check_is_off() -> None:
    voice = Voice(1.0)
    history, told = spoken_at(voice, SpeakingConfig(), 0.0, 10.0)
    assert history == History()
    assert voice.steps == []
    assert told == []


def test_an_interrupted_check_leaves_nothing() -> None:
    told: list[Event] = []
    voice = Voice(1.0)
    assert Speaker(ON, GuardConfig(), voice, told.append, voice.clock).spoken(History(), 1, lambda _done: True) is None
    assert told == []
