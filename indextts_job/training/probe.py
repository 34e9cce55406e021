"""Measures the memory of micro-batches on this device: two sizes are computed, and a line is put through them.

On a small card smaller and smaller pairs are tried, down to one sample and two.
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch

from indextts_job.hardware.memory import MemoryLine, fit
from indextts_job.model.batch import PackedBatch, Sample, collate
from indextts_job.model.config import GPTConfig
from indextts_job.training.engine import Engine
from indextts_job.training.step import TargetCounts, accumulate, clear_gradients, reset_step

LEAST_PROBED_TOKENS = 2048
"""Smaller micro-batches show the slope less exactly, because of the allocator's blocks and the chunks of the heads."""


class Meter(Protocol):
    """Measures memory."""

    def peak_bytes(self, work: Callable[[], None]) -> float:
        """Most memory in use at any time during `work`."""


class CudaMeter:
    """Measures the current CUDA device, as torch allocates its memory."""

    def peak_bytes(self, work: Callable[[], None]) -> float:
        """See `Meter`."""
        # Kernels run after their calls have returned: earlier work has to end before, and this work afterwards.
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated())


def measured_line(
    engine: Engine, config: GPTConfig, shape: tuple[int, int], longest_tokens: int, meter: Meter, step: int
) -> MemoryLine | None:
    """Bytes as a line over the tokens of a micro-batch. Weights and moments are unchanged, gradients are removed.

    Args:
        engine: Model and optimizer on the device.
        config: The model's configuration.
        shape: Numbers of text and code tokens of a usual sample.
        longest_tokens: The smaller micro-batch has at least this many tokens.
        meter: Measures the device.
        step: The position, for `reset_step`.

    Returns:
        None when not even two samples fit, or no line can be put through two sizes.
    """
    # Rounded up, so that the smaller micro-batch has at least that many tokens.
    few = -(-max(longest_tokens, LEAST_PROBED_TOKENS) // config.sample_tokens(*shape))
    while few:
        points = _peaks(engine, [uniform_batch(config, shape, count) for count in (1, few, 2 * few)], meter)
        # Also after an out of memory in the middle: gradients and the scaler must not remember the probe.
        reset_step(engine, step)
        if len(points) > 1:
            return fit(*points)
        few //= 2
    return None


def _peaks(engine: Engine, batches: Sequence[PackedBatch], meter: Meter) -> list[tuple[int, float]]:
    """Tokens and bytes of all micro-batches but the first; those up to the first that does not fit."""
    # The divisors only have to be positive: gradients of the probe are thrown away.
    last = batches[-1]
    counts = TargetCounts(text=len(last.text_targets), mel=len(last.code_targets), tokens=last.num_tokens)
    points: list[tuple[int, float]] = []
    clear_gradients(engine)
    with contextlib.suppress(torch.OutOfMemoryError):
        # Gradients exist from the second micro-batch of a step on. A first, small one creates them here, so that the
        # measured ones have the peak of the later micro-batches.
        accumulate(engine, batches[0], counts)
        for batch in batches[1:]:
            peak_bytes = meter.peak_bytes(partial(_tried, engine, batch, counts))
            points.append((batch.num_tokens, peak_bytes))
    return points


def _tried(engine: Engine, batch: PackedBatch, counts: TargetCounts) -> None:
    accumulate(engine, batch, counts)


def uniform_batch(config: GPTConfig, shape: tuple[int, int], count: int) -> PackedBatch:
    """A micro-batch of equal samples, for measurements.

    Args:
        config: The model's configuration.
        shape: Numbers of text and code tokens of a sample.
        count: Number of samples.
    """
    text, codes = shape
    sample = Sample(
        index=0,
        id="probe",
        text_ids=np.full(text, config.stop_text_token + 1, np.int32),
        codes=np.zeros(codes, np.int32),
        condition=np.zeros(config.speaker_shape, np.float32),
        emotion=np.zeros(config.model_dim, np.float32),
    )
    return collate([sample] * count, config)
