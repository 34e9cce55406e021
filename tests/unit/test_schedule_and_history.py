"""Learning rate, history and their edges."""

import json
import math

import pytest

from indextts_job.training.history import History, IntervalSums, Losses, Validation
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


def test_max_steps_is_a_limit_not_a_target() -> None:
    assert total_steps(100, ScheduleConfig(max_steps=0)) == 100
    assert total_steps(100, ScheduleConfig(max_steps=30)) == 30
    assert total_steps(100, ScheduleConfig(max_steps=300)) == 100


def test_history_keeps_the_best_and_counts_what_did_not_improve() -> None:
    history = History()
    for step, total in ((10, 3.0), (20, 2.0), (30, 2.0), (40, 2.5)):
        history = history.after_validation(Validation(step=step, losses=losses(total)))
    assert history.best == Validation(step=20, losses=losses(2.0))
    assert history.validations_without_improvement == 2
    assert history.validated_at(40)
    assert not history.validated_at(30)
    assert history.improved_at(20)


def test_history_survives_json_bit_for_bit() -> None:
    interval = IntervalSums().plus(losses(0.1 + 0.2), 1 / 3)
    history = History(samples=7, tokens=9, scaler_skips=1, interval=interval)
    history = history.after_validation(Validation(step=10, losses=losses(math.pi)))
    assert History.from_json(json.loads(json.dumps(history.to_json()))) == history
    assert History.from_json(json.loads(json.dumps(History().to_json()))) == History()


def test_interval_means_are_means_over_steps() -> None:
    sums = IntervalSums().plus(losses(1.0), 2.0).plus(losses(2.0), 4.0)
    assert sums.mean() == losses(1.5)
    assert sums.grad_norm / sums.steps == 3.0
