"""How much memory a micro-batch takes on this device: two short ones are tried, and a line drawn through them."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np
import torch

from indextts_job.hardware.memory import MemoryLine, fit
from indextts_job.model.batch import PackedBatch, Sample, collate
from indextts_job.model.config import GPTConfig
from indextts_job.training.engine import Engine
from indextts_job.training.step import TargetCounts, accumulate, reset_step

LEAST_PROBED_TOKENS = 2048
"""Smaller micro-batches do not show the slope: the allocator's blocks are larger than they are."""


class Meter(Protocol):
    """Measures memory."""

    def peak_bytes(self, work: Callable[[], None]) -> float:
        """Most memory in use at a time while something is done."""


class CudaMeter:
    """Of the current CUDA device, as torch allocates it."""

    def peak_bytes(self, work: Callable[[], None]) -> float:
        """See `Meter`."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated())


def measured_line(
    engine: Engine, config: GPTConfig, shape: tuple[int, int], longest_tokens: int, meter: Meter, step: int
) -> MemoryLine | None:
    """Measure; weights and moments stay as they are, gradients are gone afterwards.

    Args:
        engine: Model and optimizer on the device.
        config: Of the model.
        shape: Text and code tokens of a usual sample.
        longest_tokens: At least so many are tried.
        meter: Of the device.
        step: The position.

    Returns:
        None when even the smaller one does not fit, or nothing could be told.
    """
    few = -(-max(longest_tokens, LEAST_PROBED_TOKENS) // config.sample_tokens(*shape))
    one, small, large = (_batch(config, shape, count) for count in (1, few, 2 * few))
    counts = TargetCounts(text=len(large.text_targets), mel=len(large.code_targets), tokens=large.num_tokens)
    points: list[tuple[int, float]] = []
    with contextlib.suppress(torch.OutOfMemoryError):
        # From the second micro-batch of a step on the gradients are there already, so a first one is not counted.
        accumulate(engine, one, counts)
        for batch in (small, large):
            peak_bytes = meter.peak_bytes(partial(_tried, engine, batch, counts))
            points.append((batch.num_tokens, peak_bytes))
    reset_step(engine, step)
    return fit(*points) if len(points) > 1 else None


def _tried(engine: Engine, batch: PackedBatch, counts: TargetCounts) -> None:
    accumulate(engine, batch, counts)


def _batch(config: GPTConfig, shape: tuple[int, int], count: int) -> PackedBatch:
    text, codes = shape
    sample = Sample(
        index=0,
        id="probe",
        text_ids=np.full(text, config.stop_text_token + 1, np.int32),
        codes=np.zeros(codes, np.int32),
        condition=np.zeros((32, config.model_dim), np.float32),
        emotion=np.zeros(config.model_dim, np.float32),
    )
    return collate([sample] * count, config)
