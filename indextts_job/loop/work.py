"""Computes steps and validations on this machine; repeats them in smaller micro-batches after an out of memory."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from indextts_job.checkpoint.history import Losses, SpeakingResult
from indextts_job.data.dataset import Dataset
from indextts_job.data.loader import LONG_WAIT_S, Prefetcher
from indextts_job.loop.capacity import Capacity
from indextts_job.model.adapter import disabled
from indextts_job.model.batch import Allocate, PackedBatch, collate
from indextts_job.model.config import GPTConfig
from indextts_job.preemption.deadline import Stop
from indextts_job.report.events import MEMORY, Emit, Notice
from indextts_job.training.engine import Engine, allocator
from indextts_job.training.evaluate import ByLanguage, evaluate, evaluate_samples, in_order, shares
from indextts_job.training.step import Discarded, Updated, reset_step, train_step

T = TypeVar("T")
Speak = Callable[[Engine, int, Callable[[int], bool]], tuple[str, SpeakingResult] | None]
"""Speaks with the model of an engine, at a step, until all is spoken or it is interrupted."""


@dataclass(frozen=True, slots=True)
class CutStep:
    """The micro-batches of a step."""

    capacity_tokens: int
    """Capacity that they were cut for."""
    batches: list[PackedBatch]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """Implements `loop.Work`."""

    engine: Engine
    prefetcher: Prefetcher[CutStep]
    stop: Stop
    capacity: Capacity
    validation_set: Dataset | None
    validation_indices: Sequence[int]
    """The samples of a validation, in their order."""
    model_config: GPTConfig
    emit: Emit
    speaking: Speak | None = None
    """None where the model does not speak at validations."""

    def batches(self, step: int) -> Sequence[PackedBatch] | None:
        """See `loop.Work`."""
        cut = self.prefetcher.get(step, self.stop, lambda: self._waits_for("the data of a step", step))
        if cut and cut.capacity_tokens != self.capacity.tokens:
            # Micro-batches from before the capacity was lowered are cut again, even if they would fit: those of other
            # ranks may not, and all ranks need equally many.
            self.prefetcher.restart(step)
            cut = self.prefetcher.get(step, self.stop)
        # A stop may end the wait on one rank only. The others have their data and must not start the step alone.
        return None if self.engine.group.any_rank(cut is None) or cut is None else cut.batches

    def train(
        self, batches: Sequence[PackedBatch], step: int, rate: float, discard: Callable[[int], bool]
    ) -> Updated | Discarded:
        """See `loop.Work`."""
        while True:
            with contextlib.suppress(torch.OutOfMemoryError):
                return train_step(self.engine, batches, step, rate, discard)
            # Outside of the `with` block: the error holds the frames of the step, and they hold its tensors.
            reset_step(self.engine, step)
            self._lower("a step", step)
            # The prefetcher has cut later steps for the old capacity already.
            self.prefetcher.restart(step)
            again = self.batches(step)
            if again is None:
                return Discarded(0)
            batches = again

    def validate(self, interrupted: Callable[[int], bool]) -> Losses | None:
        """See `loop.Work`."""
        return self._validated(lambda batches: evaluate(self.engine, batches, interrupted, demand_finite=True))

    def _validated(self, evaluated: Callable[[Iterator[PackedBatch | None]], T]) -> T:
        """Evaluate the validation set; again in smaller micro-batches when the memory is short."""
        dataset, config = self.validation_set, self.model_config
        if dataset is None:
            raise ValueError("no validation set")
        chosen = self.validation_indices
        lengths = dataset.tokens(config, np.array(chosen))
        allocate = allocator(self.engine.device)
        while True:
            cut = [[chosen[place] for place in places] for places in in_order(lengths, self.capacity.tokens)]
            mine = list(shares(cut, self.engine.group.rank, self.engine.group.world_size))
            with (
                # Read by a thread, as for steps: a read that hangs here would otherwise hide a stop request.
                Prefetcher(partial(_validation_batch, dataset, config, allocate, mine), range(len(mine))) as prefetcher,
                contextlib.suppress(torch.OutOfMemoryError),
            ):
                batches = (self._validation_part(prefetcher, index) for index in range(len(mine)))
                return evaluated(batches)
            self._lower("a validation", 0)

    def validate_by_language(self, interrupted: Callable[[int], bool], *, base: bool) -> ByLanguage | None:
        """See `loop.Work`."""
        with disabled(self.engine.model) if base else contextlib.nullcontext():
            return self._validated(partial(self._by_language, interrupted=interrupted))

    def speak(self, step: int, interrupted: Callable[[int], bool]) -> tuple[str, SpeakingResult] | None:
        """See `loop.Work`."""
        if self.speaking is None:
            raise ValueError("nothing to speak")
        return self.speaking(self.engine, step, interrupted)

    def _by_language(
        self, batches: Iterator[PackedBatch | None], interrupted: Callable[[int], bool]
    ) -> ByLanguage | None:
        assert self.validation_set is not None  # noqa: S101  # `_validated` has asked
        return evaluate_samples(self.engine, batches, self.validation_set.language_of, interrupted)

    def _validation_part(self, prefetcher: Prefetcher[PackedBatch], index: int) -> PackedBatch | None:
        return prefetcher.get(index, self.stop, lambda: self._waits_for("the data of a validation", 0))

    def _waits_for(self, what: str, step: int) -> None:
        message = f"waiting for {what} for {LONG_WAIT_S:.0f} s: a read hangs, or the storage cannot keep up"
        self.emit(Notice(step=step, topic="data", message=message, warning=True))

    def _lower(self, doing: str, step: int) -> None:
        message = self.capacity.lower(doing)
        self.engine.model.gpt.recompute = self.capacity.recompute
        self.emit(Notice(step=step, topic=MEMORY, message=message, warning=True))


def _validation_batch(
    dataset: Dataset, config: GPTConfig, allocate: Allocate, parts: Sequence[Sequence[int]], index: int
) -> PackedBatch:
    return collate(dataset.samples(parts[index]), config, allocate)
