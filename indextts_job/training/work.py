"""The heavy parts of the training loop for one attempt on one machine: batches, step, validation, save."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch

from indextts_job.data.batch import PackedBatch, collate
from indextts_job.data.dataset import Dataset
from indextts_job.data.loader import Prefetcher
from indextts_job.hardware.plan import HardwareFacts, Plan
from indextts_job.model.config import GPTConfig
from indextts_job.training.evaluate import evaluate, in_order
from indextts_job.training.history import Losses
from indextts_job.training.saver import BackgroundSaver, FinishedSave
from indextts_job.training.state import TrainState
from indextts_job.training.step import Discarded, Machinery, Updated, train_step


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptWork:
    """What the loop calls."""

    machinery: Machinery
    prefetcher: Prefetcher[list[PackedBatch]]
    validation_set: Dataset | None
    validation_samples: int
    capacity_tokens: int
    model_config: GPTConfig
    saver: BackgroundSaver

    def batches(self, step: int) -> Sequence[PackedBatch]:
        """See `loop.Work`."""
        return self.prefetcher.get(step)

    def train(
        self, batches: Sequence[PackedBatch], step: int, rate: float, discard: Callable[[int], bool]
    ) -> Updated | Discarded:
        """See `loop.Work`."""
        return train_step(self.machinery, batches, step, rate, discard)

    def validate(self, interrupted: Callable[[int], bool]) -> Losses | None:
        """See `loop.Work`."""
        dataset, config = self.validation_set, self.model_config
        if dataset is None:
            raise ValueError("no validation set")
        lengths = [
            config.sample_tokens(dataset.text_lengths[i], dataset.code_lengths[i])
            for i in range(self.validation_samples)
        ]
        batches = (collate(dataset.samples(indices), config) for indices in in_order(lengths, self.capacity_tokens))
        return evaluate(self.machinery, batches, interrupted)

    def save(self, state: TrainState, tags: tuple[str, ...]) -> None:
        """See `loop.Work`."""
        self.saver.save(state, tags)

    def finished_save(self, *, wait_s: float) -> FinishedSave | None:
        """See `loop.Work`."""
        return self.saver.finished(wait_s=wait_s)

    def cancel_save(self) -> None:
        """See `loop.Work`."""
        self.saver.cancel()


def environment(facts: HardwareFacts, plan: Plan) -> dict[str, Any]:
    """What the attempt runs on, for people who read a checkpoint later."""
    return {
        "indextts_job": version("indextts-job"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "node": platform.node(),
        "hardware": asdict(facts),
        "plan": asdict(plan),
    }
