"""What can be known before the first step is said before it."""

import pytest

from indextts_job.attempt.foresight import foreseen
from indextts_job.checkpoint.retention import CheckpointConfig
from indextts_job.training.quality import ValidationConfig
from indextts_job.training.schedule import ScheduleConfig

SCHEDULE = ScheduleConfig(warmup_steps=10)
VALIDATION = ValidationConfig(interval_steps=50, stop_unless=("text_loss < 3 by 80",))
CHECKPOINT = CheckpointConfig(interval_steps=50)


def test_a_sound_run_has_nothing_to_be_told() -> None:
    assert list(foreseen(100, SCHEDULE, VALIDATION, CHECKPOINT, validates=True)) == []


@pytest.mark.parametrize(
    ("steps", "validates", "words"),
    [
        (10, True, "schedule.warmup_steps=10"),
        (49, True, "validation.interval_steps=50"),
        (49, True, "checkpoint.interval_steps=50"),
        (79, True, "by step 80"),
        (100, False, "no validation samples"),
    ],
)
def test_what_will_not_do_what_it_seems_to_is_told(steps: int, validates: bool, words: str) -> None:
    assert any(words in told for told in foreseen(steps, SCHEDULE, VALIDATION, CHECKPOINT, validates=validates))


def test_automatic_and_absent_intervals_are_no_fault() -> None:
    for interval in (0, -1):
        told = foreseen(
            100, SCHEDULE, ValidationConfig(interval_steps=0), CheckpointConfig(interval_steps=interval), validates=True
        )
        assert list(told) == []
