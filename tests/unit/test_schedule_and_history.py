"""Learning rate, history and their edges."""

import json
import math

import pytest

from indextts_job.checkpoint.history import History, IntervalSums, Losses, Validation
from indextts_job.parsing import parsed, plain
from indextts_job.training.schedule import ScheduleConfig, learning_rate, total_steps

CONFIG = ScheduleConfig(learning_rate=1.0, warmup_steps=10)


def losses(total: float) -> Losses:
    return Losses(text_loss=1.0, mel_loss=2.0, mel_top1=0.5, total=total)


def test_the_learning_rate_warms_up_decays_and_stays_at_zero() -> None:
    assert [learning_rate(k, 110, CONFIG) for k in (0, 5, 10)] == [0.0, 0.5, 1.0]
    assert learning_rate(60, 110, CONFIG) == pytest.approx(0.5)
    assert learning_rate(35, 110, CONFIG) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    # The public trainer's cosine rises again behind the end.
    assert [learning_rate(k, 110, CONFIG) for k in (110, 160, 10_000)] == [0.0, 0.0, 0.0]


def test_a_run_shorter_than_its_warmup_has_a_rate() -> None:
    assert learning_rate(3, 5, CONFIG) == 0.3
    assert learning_rate(0, 5, ScheduleConfig(learning_rate=1.0, warmup_steps=0)) == 1.0
    assert [learning_rate(k, 11, CONFIG) for k in (10, 11)] == [1.0, 0.0]  # one step behind its warmup


def test_max_steps_is_a_limit_not_a_target() -> None:
    assert total_steps(100, ScheduleConfig(max_steps=0)) == 100
    assert total_steps(100, ScheduleConfig(max_steps=30)) == 30
    assert total_steps(100, ScheduleConfig(max_steps=300)) == 100


def test_history_keeps_the_best_and_counts_what_did_not_improve() -> None:
    history = History()
    for step, total in ((10, 3.0), (20, 2.0), (30, 2.0), (40, 2.5)):
        history = history.after_validation(step, losses(total))
    assert history.best == Validation(step=20, losses=losses(2.0))
    assert history.validations_without_improvement == 2
    assert history.validated_at(40)
    assert not history.validated_at(30)
    assert history.improved_at(20)


def stored_and_read(history: History) -> History:
    return parsed(json.loads(json.dumps(plain(history))), History, "history")


def test_history_survives_json_bit_for_bit() -> None:
    interval = IntervalSums().plus(losses(0.1 + 0.2), 1 / 3)
    history = History(samples=7, tokens=9, scaler_skips=1, interval=interval)
    history = history.after_step(losses(1 / 7), 0.1).after_validation(10, losses(math.pi))
    assert stored_and_read(history) == history
    assert stored_and_read(History()) == History()


def test_interval_means_are_means_over_steps() -> None:
    sums = IntervalSums().plus(losses(1.0), 2.0).plus(losses(2.0), 4.0)
    assert sums.mean() == losses(1.5)
    assert sums.grad_norm / sums.steps == 3.0


def curve(train: list[float], validation: list[float]) -> History:
    """A history of one step and one validation each."""
    history = History()
    for step, (low, high) in enumerate(zip(train, validation, strict=True), start=1):
        history = history.after_step(losses(low), 0.0).after_validation(step, losses(high), 3)
    return history


@pytest.mark.parametrize(
    ("train", "validation", "since"),
    [
        ([3, 2, 1.8, 1.6, 1.4], [3, 2.5, 2.6, 2.7, 2.8], 5),  # learns by heart
        ([3, 2, 1.8, 1.6, 1.4], [3, 2.5, 2.4, 2.3, 2.2], None),  # learns
        ([3, 2, 2.1, 2.2, 2.3], [3, 2.5, 2.6, 2.7, 2.8], None),  # diverges: both get worse
        ([3, 2, 1.8, 1.6, 1.4], [3, 2.5, 2.6, 2.4, 2.5], None),  # comes back in between
        ([3, 2, 1.8, 1.6, 1.4, 1.2, 1.1], [3, 2.5, 2.6, 2.7, 2.8, 2.4, 2.3], 5),  # once seen, it stays in the record
    ],
)
def test_overfitting_is_told_from_other_curves(train: list[float], validation: list[float], since: int | None) -> None:
    history = curve(train, validation)
    assert history.overfitting_since == since
    assert stored_and_read(history) == history


def test_a_history_of_an_older_version_is_read() -> None:
    document = plain(curve([3, 2], [3, 2.5]))
    for key in ("since_validation", "overfitting_since"):
        del document[key]
    for validation in (*document["validations"], document["best"]):
        del validation["train_total"]
    history = parsed(json.loads(json.dumps(document)), History, "history")
    assert [one.step for one in history.validations] == [1, 2]
    for step in (3, 4, 5):
        history = history.after_step(losses(1.0), 0.0).after_validation(step, losses(3.0), 3)
    assert history.overfitting_since is None  # what the training loss was at the best one is not known
