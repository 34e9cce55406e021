"""The lines that people look for."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from indextts_job.checkpoint.history import Losses
from indextts_job.parsing import plain
from indextts_job.report.attempts import Attempt
from indextts_job.report.standing import how_it_ended, standing
from tests.support.crafted_attempts import committed, crafted, train_line, validation

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def ago(**duration: float) -> str:
    return (NOW - timedelta(**duration)).isoformat()


def row(**changes: Any) -> Attempt:
    return crafted(**{"heard": ago(seconds=5), **changes})


LOSSES = Losses(text_loss=3.25, mel_loss=4.5, mel_top1=0.25, total=4.0)
TRAIN = train_line(
    120, epoch=1.5, losses=LOSSES, learning_rate=5e-6, samples_per_s=12.34, tokens_per_s=5000.4, eta_s=3700.0
)
SAVED: dict[str, Any] = {"validation": validation(100, 3.9), "checkpoint": committed(100, ago(minutes=2))}


def test_a_run_that_trains() -> None:
    rows = [
        row(outcome="stopped", exit_code=75, last_step=60, total_steps=400),
        row(from_step=50, last_step=120, total_steps=400, train=TRAIN, **SAVED),
    ]
    assert standing(rows, NOW).lines() == [
        ("state", "training, last heard of 0:00:05 ago"),
        ("step", "120 of 400 (30%), epoch 1.50"),
        ("losses", "text 3.2500, mel 4.5000, top-1 25.0%, learning rate 5e-06"),
        ("validation", "3.9000 at step 100 (the best so far)"),
        ("rate", "12.3 samples/s, 5000 tokens/s, left 1:01:40"),
        ("checkpoint", "step 100, 0:02:00 ago"),
        ("attempts", "2, 10 steps done again"),
    ]


def test_what_can_have_become_of_it() -> None:
    def state(**changes: Any) -> str:
        return dict(standing([row(**changes)], NOW).lines())["state"]

    assert state(outcome="complete", exit_code=0, ended=ago(days=1)) == "complete"
    assert state(outcome="failed", exit_code=69, ended=ago(hours=1)) == "failed with exit code 69, 1:00:00 ago"
    assert state(heard=ago(hours=2)) == "silent: last heard of 2:00:00 ago; it was killed, or hangs"
    assert state(heard=(NOW + timedelta(hours=1)).isoformat()).startswith("training")  # clocks of two machines


def test_why_it_ended_is_said_in_its_own_words() -> None:
    failed = row(outcome="failed", exit_code=65, ended=ago(hours=1), message="DataError: 3 bad samples")
    found = standing([failed], NOW)
    assert found.lines()[:2] == [
        ("state", "failed with exit code 65, 1:00:00 ago"),
        ("why", "DataError: 3 bad samples"),
    ]
    assert found.to_json()["message"] == "DataError: 3 bad samples"
    assert "why" not in dict(standing([failed, row()], NOW).lines()), "it trains again"


def test_what_is_lost_shows_from_the_last_attempt_that_knew() -> None:
    rows = [row(train=TRAIN, total_steps=400, last_step=90), row(from_step=80, last_step=80)]
    found = dict(standing(rows, NOW).lines())
    assert found["step"] == "80 of 400 (20%), epoch 1.50"
    assert found["attempts"] == "2, 10 steps done again"


def test_troubles_are_counted_over_all_attempts() -> None:
    rows = [
        row(outcome="failed", exit_code=70, last_step=60, out_of_memory=2),
        row(outcome="failed", exit_code=69, from_step=60, last_step=60, out_of_memory=1),
        row(from_step=60, last_step=90, train=TRAIN, total_steps=400),
    ]
    found = standing(rows, NOW)
    assert (found.failed_attempts, found.out_of_memory) == (2, 3)
    assert dict(found.lines())["attempts"] == "3, 0 steps done again, 2 failed, out of memory 3 x"


def test_programs_get_values() -> None:
    rows = [
        row(outcome="stopped", exit_code=75, last_step=60, total_steps=400),
        row(from_step=50, last_step=120, total_steps=400, train=TRAIN, **SAVED),
    ]
    assert standing(rows, NOW).to_json() == {
        "state": "training",
        "exit_code": None,
        "message": None,
        "since_seconds": 5.0,
        "step": 120,
        "total_steps": 400,
        "epoch": 1.5,
        "losses": plain(LOSSES),
        "learning_rate": 5e-6,
        "validation_total": 3.9,
        "validation_step": 100,
        "validation_is_best": True,
        "speaking_step": None,
        "speaking_broken": None,
        "samples_per_second": 12.34,
        "tokens_per_second": 5000.4,
        "left_seconds": 3700.0,
        "checkpoint_step": 100,
        "checkpoint_age_seconds": 120.0,
        "attempts": 2,
        "steps_done_again": 10,
        "failed_attempts": 0,
        "out_of_memory": 0,
        "goodput": None,
        "model": None,
    }


def test_what_is_not_known_yet_has_no_value() -> None:
    values = standing([row()], NOW).to_json()
    known = {key for key, value in values.items() if value is not None}
    counts = {"attempts", "steps_done_again", "failed_attempts", "out_of_memory"}
    assert known == {"state", "since_seconds", "step", *counts}


def test_a_process_that_is_gone_was_killed() -> None:
    for heard in (ago(seconds=5), ago(hours=2)):
        gone = standing([row(heard=heard, train=TRAIN, total_steps=400)], NOW, running=False)
        assert gone.state == "killed"
        assert gone.left_seconds is None  # nobody is at it
    assert dict(gone.lines())["state"] == "killed: its process is gone; last heard of 2:00:00 ago"
    assert standing([row(heard=ago(hours=2))], NOW, running=True).state == "silent"
    assert standing([row(outcome="complete", exit_code=0, ended=ago(days=1))], NOW, running=False).state == "complete"


@pytest.mark.parametrize(
    ("newest", "running", "words"),
    [(True, True, "runs"), (True, None, "runs, or was killed"), (True, False, "killed"), (False, None, "killed")],
)
def test_the_end_of_an_attempt_that_wrote_none(newest: bool, running: bool | None, words: str) -> None:
    assert how_it_ended(row(), newest=newest, running=running) == words
    assert how_it_ended(row(outcome="failed", exit_code=70), newest=newest, running=running) == "failed (70)"
