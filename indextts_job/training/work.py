"""The heavy parts of the training loop for one attempt on one machine: batches, step, validation, save."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch

from indextts_job.checkpoint.fence import Fence
from indextts_job.checkpoint.manifest import file_name
from indextts_job.checkpoint.retention import CheckpointName
from indextts_job.checkpoint.store import CheckpointStore, Content
from indextts_job.data.batch import PackedBatch, collate
from indextts_job.data.dataset import Dataset
from indextts_job.data.loader import Prefetcher
from indextts_job.errors import DataError, UnavailableError
from indextts_job.hardware.plan import HardwareFacts, Plan
from indextts_job.model.config import GPTConfig
from indextts_job.report.events import Committed, Emit, Notice
from indextts_job.training.evaluate import evaluate, in_order
from indextts_job.training.history import Losses
from indextts_job.training.state import BASE, Carried, TrainState
from indextts_job.training.step import Discarded, Machinery, Updated, train_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Saver:
    """Commits checkpoints of one attempt."""

    store: CheckpointStore
    fence: Fence
    attempt_start: int
    keep: int
    unreadable: Sequence[CheckpointName]
    values: Mapping[str, Any]
    """What stays the same in every checkpoint of the attempt."""
    files: Mapping[str, bytes]
    emit: Emit

    def save(self, state: TrainState, tags: tuple[str, ...]) -> float:
        """Commit the state, then remove what need not be kept; returns the seconds of the commit."""
        started_s = time.monotonic()
        name = CheckpointName(state.step, self.fence.attempt, self.attempt_start, tags)
        content = Content(
            groups=state.tensor_groups(),
            carried=state.carried.stored,
            carried_objects=state.carried.objects,
            files=self.files,
            values={**self.values, "history": state.history.to_json(), "scaler": state.scaler_values()},
        )
        result = self.store.commit(name, content, self.fence.check)
        if state.carried.tensors:
            state.carried = carried_by(result.manifest.tensors, result.manifest.objects)
        seconds = time.monotonic() - started_s
        self.emit(
            Committed(
                step=state.step,
                name=file_name(name),
                tags=tags,
                bytes_written=result.bytes_written,
                bytes_total=result.manifest.size_bytes,
                seconds=seconds,
            )
        )
        try:
            self.store.retain(self.keep, self.unreadable)
        except (DataError, UnavailableError) as error:
            message = f"old checkpoints were not removed: {error}"
            self.emit(Notice(step=state.step, topic="checkpoint", message=message, warning=True))
        return seconds


def carried_by(tensors: Mapping[str, Any], objects: Mapping[str, Any]) -> Carried:
    """The tensors that never change, as references into the run's storage."""
    stored = {key: entry for key, entry in tensors.items() if key.startswith(BASE)}
    keys = {entry.object for entry in stored.values()}
    return Carried(stored=stored, objects={key: objects[key] for key in keys})


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptWork:
    """What the loop calls."""

    machinery: Machinery
    prefetcher: Prefetcher[list[PackedBatch]]
    validation_set: Dataset | None
    validation_samples: int
    capacity_tokens: int
    model_config: GPTConfig
    saver: Saver

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
        batches = (
            collate([dataset.sample(i) for i in indices], config) for indices in in_order(lengths, self.capacity_tokens)
        )
        return evaluate(self.machinery, batches, interrupted)

    def save(self, state: TrainState, tags: tuple[str, ...]) -> float:
        """See `loop.Work`."""
        return self.saver.save(state, tags)


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
