"""The heavy parts of the training loop for one attempt on one machine: batches, step, validation, save."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from indextts_job.data.batch import PackedBatch, collate
from indextts_job.data.dataset import Dataset
from indextts_job.data.loader import Prefetcher
from indextts_job.model.config import GPTConfig
from indextts_job.report.events import Emit, Notice
from indextts_job.training.capacity import Capacity
from indextts_job.training.consistency import Reference
from indextts_job.training.evaluate import evaluate, in_order, shares
from indextts_job.training.history import Losses
from indextts_job.training.saver import BackgroundSaver, FinishedSave
from indextts_job.training.state import TrainState
from indextts_job.training.step import Discarded, Machinery, Updated, forget, train_step


@dataclass(frozen=True, slots=True)
class CutStep:
    """The micro-batches of a step."""

    capacity_tokens: int
    """That they were cut for."""
    batches: list[PackedBatch]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptWork:
    """What the loop calls. Whatever runs out of the device's memory is done again in smaller pieces."""

    machinery: Machinery
    prefetcher: Prefetcher[CutStep]
    build: Callable[[int], CutStep]
    """A step, cut for the capacity of now."""
    capacity: Capacity
    validation_set: Dataset | None
    validation_samples: int
    model_config: GPTConfig
    saver: BackgroundSaver
    reference: Reference
    emit: Emit

    def batches(self, step: int) -> Sequence[PackedBatch]:
        """See `loop.Work`."""
        ahead = self.prefetcher.get(step)
        # What was cut before the capacity was lowered is cut again, also where it would fit: other ranks' may not.
        return (ahead if ahead.capacity_tokens == self.capacity.tokens else self.build(step)).batches

    def train(
        self, batches: Sequence[PackedBatch], step: int, rate: float, discard: Callable[[int], bool]
    ) -> Updated | Discarded:
        """See `loop.Work`."""
        while True:
            with contextlib.suppress(torch.OutOfMemoryError):
                return train_step(self.machinery, batches, step, rate, discard)
            # Here the error is gone, and with it the frames that held on to tensors.
            forget(self.machinery, step)
            self._lower("a step", step)
            batches = self.build(step).batches

    def validate(self, interrupted: Callable[[int], bool]) -> Losses | None:
        """See `loop.Work`."""
        dataset, config = self.validation_set, self.model_config
        if dataset is None:
            raise ValueError("no validation set")
        lengths = [
            config.sample_tokens(dataset.text_lengths[i], dataset.code_lengths[i])
            for i in range(self.validation_samples)
        ]
        while True:
            cut = list(in_order(lengths, self.capacity.tokens))
            mine = shares(cut, self.machinery.ranks.rank, self.machinery.ranks.world_size)
            batches = (collate(dataset.samples(indices), config) for indices in mine)
            with contextlib.suppress(torch.OutOfMemoryError):
                return evaluate(self.machinery, batches, interrupted)
            self._lower("a validation", 0)

    def _lower(self, doing: str, step: int) -> None:
        message = self.capacity.lower(doing)
        self.machinery.model.gpt.recompute = self.capacity.recompute
        self.emit(Notice(step=step, topic="memory", message=message, warning=True))

    def save(self, state: TrainState, tags: tuple[str, ...]) -> None:
        """See `loop.Work`."""
        further: dict[str, Any] = {}
        if self.machinery.ranks.rank == 0:
            rate = self.machinery.optimizer.param_groups[0]["lr"] if state.step else None
            further = {"learning_rate": rate, "reference": self.reference.losses(self.machinery)}
        self.saver.save(state, tags, further)

    def finished_save(self, *, wait_s: float) -> FinishedSave | None:
        """See `loop.Work`."""
        return self.saver.finished(wait_s=wait_s)

    def cancel_save(self) -> None:
        """See `loop.Work`."""
        self.saver.cancel()
