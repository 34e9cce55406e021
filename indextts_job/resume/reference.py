"""Losses of the first training samples, which identify a state: recorded by every save, computed again at a resume."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from indextts_job.checkpoint.tensor_names import WEIGHTS
from indextts_job.checkpoint.values import ReferenceLosses
from indextts_job.data.dataset import Dataset
from indextts_job.model.batch import PackedBatch, collate
from indextts_job.model.config import GPTConfig
from indextts_job.training.distributed import SingleProcess
from indextts_job.training.engine import Engine
from indextts_job.training.evaluate import begin_evaluation, evaluate

REFERENCE_SAMPLES = 2
"""More than one, so that the packing of samples is part of what is compared."""
LONGEST = 16
"""Text tokens and codes of a sample at most. All weights are used by a few as well as by all, and on a CPU the losses
are computed beside the training."""

Later = Callable[[], ReferenceLosses | None]
"""Gives the losses; None when the device has too little memory."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The first samples of the training set, computed without dropout."""

    batch: PackedBatch
    longest: int | None = None
    """Text tokens and codes of each sample at most; None = all."""

    @classmethod
    def of(cls, dataset: Dataset, config: GPTConfig, recorded: ReferenceLosses | None = None) -> Self:
        """The first samples of a dataset.

        Args:
            dataset: The training samples.
            config: The model's sizes.
            recorded: The losses that a checkpoint records, which have to be computed again.
        """
        count = len(recorded.samples) if recorded else REFERENCE_SAMPLES
        longest = recorded.longest if recorded else LONGEST
        samples = dataset.samples(range(min(count, len(dataset))))
        cut = [replace(one, text_ids=one.text_ids[:longest], codes=one.codes[:longest]) for one in samples]
        return cls(collate(cut, config), longest)

    def losses(self, engine: Engine) -> ReferenceLosses | None:
        """Their losses with the present weights; None when the device has too little memory."""
        try:
            # Each rank for itself: only rank 0 records losses, so a collective here would wait for the others for ever.
            found = evaluate(replace(engine, group=SingleProcess()), [self.batch], lambda _done: False)
        # A diagnosis must not end a training that itself fits the memory.
        except torch.OutOfMemoryError:
            return None
        return self._recorded(engine, found.text_loss if found else math.nan, found.mel_loss if found else math.nan)

    def begun(self, engine: Engine, copies: Mapping[str, Tensor]) -> Later:
        """Begin to compute the losses of the present weights, without making the training wait for them.

        Args:
            engine: The engine, with the present weights.
            copies: Copies of the weights on the host, by full name, which stay as they are until the result is there.

        Returns:
            Waits for the result; for another thread.
        """
        if engine.device.type == "cuda":
            # Launched between two steps; the kernels read the weights before the next update changes them.
            finish = begin_evaluation(engine, self.batch)
            if finish is None:
                return lambda: None
            return lambda: self._recorded(engine, *finish())
        names = [name for name, _ in engine.model.named_parameters()]
        if not all(WEIGHTS + name in copies for name in names):
            now = self.losses(engine)  # a rank that shares the save with others has copied only a part
            return lambda: now
        return lambda: self._losses_of_copies(engine, {name: copies[WEIGHTS + name] for name in names})

    def _losses_of_copies(self, engine: Engine, weights: Mapping[str, Tensor]) -> ReferenceLosses | None:
        """Losses computed with copies of the weights, while the training changes its own."""
        # The modules alone: their tensors are those of the model until the copies take the place of the weights. The
        # frozen rows stay, because they never change.
        tensors = (*engine.model.parameters(), *engine.model.buffers())
        twin = copy.deepcopy(engine.model, {id(tensor): tensor for tensor in tensors})
        twin.load_state_dict({**weights, **dict(engine.model.named_buffers())}, strict=True, assign=True)
        return self.losses(replace(engine, model=twin))

    def _recorded(self, engine: Engine, text_loss: float, mel_loss: float) -> ReferenceLosses:
        return ReferenceLosses(
            samples=tuple(self.batch.sample_ids),
            text_loss=text_loss,
            mel_loss=mel_loss,
            precision=engine.precision,
            device=engine.device.type,
            longest=self.longest,
        )
