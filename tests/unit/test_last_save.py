"""The last save of an attempt while an older one is in flight: what is given up, and what never is."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from indextts_job.checkpoint.history import Losses
from indextts_job.checkpoint.retention import CheckpointConfig
from indextts_job.checkpoint.values import CheckpointValues
from indextts_job.data.order import Order
from indextts_job.loop.background_saver import FinishedSave, SaveCancelledError
from indextts_job.loop.checkpointing import CheckpointingSettings
from indextts_job.loop.loop import LoopSettings, TrainingLoop
from indextts_job.model.batch import PackedBatch
from indextts_job.preemption.deadline import StopRequest
from indextts_job.training.evaluate import ByLanguage
from indextts_job.training.quality import ValidationConfig
from indextts_job.training.recipe import OptimizerConfig
from indextts_job.training.schedule import ScheduleConfig
from indextts_job.training.state import TrainState, build_optimizer
from indextts_job.training.step import Discarded, Updated
from tests.support.models import small_model

LOSSES = Losses(text_loss=1.0, mel_loss=1.0, mel_top1=0.5, total=1.0)


class SlowStorage:
    """Work and saver in one: saves take until they are waited for; training and validation take no time."""

    def __init__(self) -> None:
        self.committed: list[tuple[int, tuple[str, ...]]] = []
        self.stopping = False
        self._in_flight: tuple[int, tuple[str, ...]] | None = None
        self._cancelled = False

    def batches(self, step: int) -> Sequence[PackedBatch]:
        self.stopping = step == 2
        return []

    def train(
        self, batches: Sequence[PackedBatch], step: int, rate: float, discard: Callable[[int], bool]
    ) -> Updated | Discarded:
        return Updated(
            losses=LOSSES, grad_norm=1.0, samples=(0,), tokens=1, scaler_skips=0, micro_batch_s=0.0, update_s=0.0
        )

    def validate(self, interrupted: Callable[[int], bool]) -> Losses | None:
        return LOSSES

    def speak(self, step: int, interrupted: Callable[[int], bool]) -> None:
        raise AssertionError("nothing is to be spoken")

    def validate_by_language(self, interrupted: Callable[[int], bool], *, base: bool) -> ByLanguage | None:
        raise NotImplementedError

    def save(self, state: TrainState, tags: tuple[str, ...], values: CheckpointValues | None) -> None:
        self._in_flight, self._cancelled = (state.step, tags), False

    def finished(self, *, wait_s: float) -> FinishedSave | None:
        if self._in_flight is None or not wait_s:
            return None
        save, self._in_flight = self._in_flight, None
        if self._cancelled:
            return FinishedSave(seconds=1.0, error=SaveCancelledError("given up"))
        self.committed.append(save)
        return FinishedSave(seconds=1.0)

    def cancel(self) -> None:
        self._cancelled = True


@pytest.mark.parametrize(
    ("validation_samples", "grace_s", "committed"),
    [
        (0, math.inf, [(3, ("preempted",))]),
        (0, 1e-9, [(2, ()), (3, ("preempted",))]),
        (4, math.inf, [(2, ("best",)), (3, ("preempted",))]),
    ],
    ids=["a periodic save is given up", "not when time is short", "the best one never is"],
)
def test_the_last_save_gives_up_only_what_it_replaces(
    validation_samples: int, grace_s: float, committed: list[tuple[int, tuple[str, ...]]]
) -> None:
    work = SlowStorage()
    settings = LoopSettings(
        total_steps=10,
        order=Order(num_samples=10, seed=0, global_batch_samples=1),
        schedule=ScheduleConfig(),
        validation=ValidationConfig(interval_steps=2),
        validation_samples=validation_samples,
        log_interval_steps=100,
        checkpointing=CheckpointingSettings(
            checkpoint=CheckpointConfig(interval_steps=2), between_kills_s=3600.0, estimate_s=1.0
        ),
    )
    model = small_model()
    state = TrainState(
        model=model,
        optimizer=build_optimizer(model, OptimizerConfig()),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )
    loop = TrainingLoop(
        settings,
        work,
        work,
        lambda _state, _pace: None,
        stop=lambda: StopRequest("SIGTERM", 0.0, grace_s) if work.stopping else None,
        emit=lambda _event: None,
        clock=lambda: 0.0,
    )
    assert loop.run(state) == "stopped"
    assert work.committed == committed
