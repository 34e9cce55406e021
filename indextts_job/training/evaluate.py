"""Validation over a fixed list of samples in a fixed order; leaves the model in training mode whatever happens."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from indextts_job.checkpoint.history import Losses
from indextts_job.model.batch import PackedBatch
from indextts_job.training.engine import Engine, autocast, mean_losses, to_device

if TYPE_CHECKING:
    from indextts_job.model.unified_voice import LossSums


def evaluate(
    engine: Engine, batches: Iterable[PackedBatch | None], interrupted: Callable[[int], bool]
) -> Losses | None:
    """Losses over all samples of `batches`, as the mean over targets with the training weights.

    Args:
        engine: The model and how to compute; the optimizer is not touched.
        batches: The validation set, packed; this rank's share of it, with as many micro-batches as any other has.
            None where a stop request ended the wait for one; then `interrupted` says so on every rank.
        interrupted: Asked before every micro-batch with the number of samples done here; True gives up.

    Returns:
        The losses, or None when interrupted.

    Raises:
        torch.OutOfMemoryError: On this or another rank.
    """
    sums: list[LossSums] = []
    done = text_targets = mel_targets = 0
    out_of_memory = False
    engine.model.eval()
    dtype = next(engine.model.parameters()).dtype
    try:
        with torch.no_grad(), autocast(engine.device, engine.precision):
            for batch in batches:
                if interrupted(done):
                    return None
                if batch is None or out_of_memory or not batch.num_samples:
                    continue
                out_of_memory = True
                with contextlib.suppress(torch.OutOfMemoryError):
                    sums.append(engine.model(to_device(batch, engine.device, dtype)))
                    out_of_memory = False
                done += batch.num_samples
                text_targets += len(batch.text_targets)
                mel_targets += len(batch.code_targets)
    finally:
        engine.model.train()
    if engine.group.any_rank(out_of_memory):
        raise torch.OutOfMemoryError("out of memory in a validation, on this or another rank")
    text, mel = engine.group.all_reduce_sum([text_targets, mel_targets])
    return mean_losses(sums, text, mel, engine)


def shares(batches: Sequence[Sequence[int]], rank: int, world_size: int) -> Iterator[Sequence[int]]:
    """One rank's share of micro-batches, by turns; nothing where a last turn has none left for it."""
    for first in range(0, len(batches), world_size):
        yield batches[first + rank] if first + rank < len(batches) else ()


def in_order(lengths: Sequence[int], capacity_tokens: int) -> Iterator[list[int]]:
    """Cut samples into micro-batches without changing their order.

    Args:
        lengths: Tokens of each sample; none longer than the capacity.
        capacity_tokens: Tokens of one micro-batch.
    """
    taken: list[int] = []
    tokens = 0
    for index, length in enumerate(lengths):
        if taken and tokens + length > capacity_tokens:
            yield taken
            taken, tokens = [], 0
        taken.append(index)
        tokens += length
    if taken:
        yield taken
