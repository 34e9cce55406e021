"""The lines that people look for."""

from datetime import UTC, datetime, timedelta
from typing import Any

from indextts_job.report.standing import standing

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def ago(**duration: float) -> str:
    return (NOW - timedelta(**duration)).isoformat()


def row(**changes: Any) -> dict[str, Any]:
    nothing = {"outcome": "", "exit_code": None, "ended": "", "heard": ago(seconds=5), "from_step": 0, "last_step": 0}
    return {**nothing, "train": None, "validation": None, "checkpoint": None, "total_steps": None, **changes}


TRAIN = {
    "epoch": 1.5,
    "losses": {"text_loss": 3.25, "mel_loss": 4.5, "mel_top1": 0.25, "total": 4.0},
    "learning_rate": 5e-6,
    "samples_per_s": 12.34,
    "tokens_per_s": 5000.4,
    "eta_s": 3700.0,
}


def test_a_run_that_trains() -> None:
    validation = {"step": 100, "losses": {"total": 3.9}, "best": True}
    checkpoint = {"step": 100, "time": ago(minutes=2)}
    rows = [
        row(outcome="stopped", exit_code=75, last_step=60, total_steps=400),
        row(from_step=50, last_step=120, total_steps=400, train=TRAIN, validation=validation, checkpoint=checkpoint),
    ]
    assert standing(rows, NOW) == [
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
        return dict(standing([row(**changes)], NOW))["state"]

    assert state(outcome="complete", exit_code=0, ended=ago(days=1)) == "complete"
    assert state(outcome="failed", exit_code=69, ended=ago(hours=1)) == "failed with exit code 69, 1:00:00 ago"
    assert state(heard=ago(hours=2)) == "silent: last heard of 2:00:00 ago; it was killed, or hangs"
    assert state(heard=(NOW + timedelta(hours=1)).isoformat()).startswith("training")  # clocks of two machines


def test_what_is_lost_shows_from_the_last_attempt_that_knew() -> None:
    rows = [row(train=TRAIN, total_steps=400, last_step=90), row(from_step=80, last_step=80)]
    found = dict(standing(rows, NOW))
    assert found["step"] == "80 of 400 (20%), epoch 1.50"
    assert found["attempts"] == "2, 10 steps done again"
