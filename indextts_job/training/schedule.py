"""Learning rate of step k: linear warmup, then cosine decay to zero. A function of the step, so nothing is stored."""

import math
from dataclasses import dataclass
from typing import Annotated

from indextts_job.bounds import Bounds

RATE_FACTOR = "rate_factor"
"""Key in a group of the optimizer: its learning rate in multiples of the schedule's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """The length of the run and its learning rate."""

    learning_rate: Annotated[float, Bounds(0, 1e3)] = 2e-5
    """Peak learning rate. 2e-5 is the published recipe; 5e-6 is the one for a new language."""
    warmup_steps: Annotated[int, Bounds(0, 10**9)] = 1000
    """Steps of linear warmup from 0."""
    new_rows_factor: Annotated[float, Bounds(0, 1000)] = 4.0
    """Learning rate of new vocabulary rows, in multiples of that of everything else: they start from nothing, while
    the rest of the model is pretrained. No effect without new rows."""
    epochs: Annotated[int, Bounds(1, 10**6)] = 10
    """Passes over the training set."""
    max_steps: Annotated[int, Bounds(0, 10**9)] = 0
    """Limit of optimizer steps; 0 = only the epochs limit the run."""


def learning_rate(step: int, total_steps: int, config: ScheduleConfig) -> float:
    """Learning rate of one update.

    The factor is k / warmup below warmup, then (1 + cos(pi (k - warmup) / (total - warmup))) / 2, as the public
    IndexTTS2 trainer computes it, except that it stays at 0 past the end instead of rising again.

    Args:
        step: The update, counted from 0.
        total_steps: Updates of the whole run.
        config: Peak and warmup.
    """
    warmup = config.warmup_steps
    # Step 0 has rate 0, as in the public trainer, so that curves can be compared step by step.
    if step < warmup:
        return config.learning_rate * step / warmup
    # A warmup as long as the run leaves no decay; the divisor must not be 0.
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def total_steps(stream_steps: int, config: ScheduleConfig) -> int:
    """Updates of the whole run: those of the epochs, or `max_steps` where that is fewer."""
    return min(stream_steps, config.max_steps) if config.max_steps else stream_steps
