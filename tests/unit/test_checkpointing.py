"""The saves of an attempt: which failures are survived, and which end it."""

import math
from dataclasses import replace

import pytest
import torch

from indextts_job.checkpoint.retention import CheckpointConfig
from indextts_job.checkpoint.values import CheckpointValues
from indextts_job.errors import DataError, UnavailableError
from indextts_job.loop.background_saver import FinishedSave, SaveCancelledError
from indextts_job.loop.checkpointing import Checkpointing, CheckpointingSettings
from indextts_job.loop.timekeeping import Timekeeper
from indextts_job.report.events import Event, Notice
from indextts_job.training.distributed import SingleProcess
from indextts_job.training.recipe import OptimizerConfig
from indextts_job.training.state import TrainState, build_optimizer
from tests.support.models import small_model

GONE = UnavailableError("the bucket does not answer.")


class Storage:
    """Saves end at once, each as the next of `errors` says."""

    def __init__(self, errors: list[Exception | None]) -> None:
        self.errors = errors
        self.begun: list[int] = []
        self._in_flight = False

    def save(self, state: TrainState, tags: tuple[str, ...], values: CheckpointValues | None) -> None:
        self.begun.append(state.step)
        self._in_flight = True

    def finished(self, *, wait_s: float) -> FinishedSave | None:
        if not self._in_flight:
            return None
        self._in_flight = False
        return FinishedSave(seconds=1.0, error=self.errors.pop(0))

    def cancel(self) -> None:
        raise NotImplementedError


def saves_on(saver: Storage, events: list[Event]) -> Checkpointing:
    config = CheckpointConfig(interval_steps=2)
    return Checkpointing(
        CheckpointingSettings(checkpoint=config, between_kills_s=3600.0, estimate_s=1.0),
        saver,
        lambda _state, _pace: None,
        stop=lambda: None,
        emit=events.append,
        clock=lambda: 0.0,
        group=SingleProcess(),
        time=Timekeeper(lambda: 0.0),
    )


@pytest.fixture(scope="module")
def state() -> TrainState:
    model = small_model()
    optimizer = build_optimizer(model, OptimizerConfig())
    return TrainState(model=model, optimizer=optimizer, scaler=torch.amp.GradScaler("cpu", enabled=False))


def saved(state: TrainState, errors: list[Exception | None]) -> tuple[Storage, list[Event]]:
    """Steps 2, 4, 6 … are saved, one for every error."""
    events: list[Event] = []
    work = Storage(errors)
    saves = saves_on(work, events)
    for number in range(1, len(errors) + 1):
        saves.begin(replace(state, step=2 * number))
        saves.collect(wait_s=math.inf)
    return work, events


def test_one_failed_save_is_a_warning_and_the_second_in_a_row_ends_the_attempt(state: TrainState) -> None:
    second = UnavailableError("still not.")
    errors: list[Exception | None] = [GONE, second, None]
    with pytest.raises(UnavailableError, match="still not"):
        saved(state, errors)
    assert errors == [None]
    _, events = saved(state, [GONE])
    (notice,) = (event for event in events if isinstance(event, Notice))
    assert notice.warning
    assert notice.message == f"{GONE} Training goes on; if the next save fails too, the attempt ends."
    assert notice.step == 2


def test_a_save_that_works_makes_good_for_one_that_failed(state: TrainState) -> None:
    work, events = saved(state, [GONE, None, GONE, None, GONE])
    assert work.begun == [2, 4, 6, 8, 10]
    assert [event.step for event in events if isinstance(event, Notice)] == [2, 6, 10]


def test_a_save_that_was_given_up_has_not_failed(state: TrainState) -> None:
    work, events = saved(state, [SaveCancelledError("given up"), SaveCancelledError("given up"), GONE, None])
    assert work.begun == [2, 4, 6, 8]
    assert [event.step for event in events if isinstance(event, Notice)] == [6]


def test_an_error_that_does_not_go_away_ends_the_attempt_at_once(state: TrainState) -> None:
    with pytest.raises(DataError):
        saved(state, [DataError("damaged")])


def test_a_failed_save_is_made_up_for_at_the_next_interval(state: TrainState) -> None:
    saves = saves_on(Storage([GONE, None]), [])
    second, third, fourth = (replace(state, step=step) for step in (2, 3, 4))
    assert saves.due(second)
    saves.begin(second)
    saves.collect(wait_s=math.inf)
    assert not saves.holds(second)
    assert not saves.due(third)
    assert saves.due(fourth)
    saves.begin(fourth)
    saves.collect(wait_s=math.inf)
    assert saves.holds(fourth)
    assert not saves.due(fourth)


def test_the_last_save_may_not_fail(state: TrainState) -> None:
    saves = saves_on(Storage([GONE]), [])
    with pytest.raises(UnavailableError, match="does not answer"):
        saves.commit_now(replace(state, step=3), "final")
