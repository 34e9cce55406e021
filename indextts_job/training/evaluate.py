"""Validation over a fixed list of samples in a fixed order. The model is in training mode afterwards in every case."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from indextts_job.checkpoint.history import Losses
from indextts_job.model.batch import PackedBatch
from indextts_job.training.engine import Engine, added, autocast, host_values, mean_losses, to_device

if TYPE_CHECKING:
    from indextts_job.model.unified_voice import LossSums


def evaluate(
    engine: Engine, batches: Iterable[PackedBatch | None], interrupted: Callable[[int], bool]
) -> Losses | None:
    """Losses over all samples of `batches`, as the mean over targets with the training weights.

    Args:
        engine: The model and how to compute; the optimizer is not touched.
        batches: This rank's part of the validation set, packed. All ranks have equally many micro-batches. None stands
            for one whose wait a stop request has ended; `interrupted` is then true on every rank.
        interrupted: Called before every micro-batch with the number of samples done on this rank; True gives up.

    Returns:
        The losses, or None when interrupted.

    Raises:
        torch.OutOfMemoryError: On this or another rank.
    """
    sums: list[LossSums] = []
    done = text_targets = mel_targets = 0
    out_of_memory = False
    with _evaluating(engine):
        for batch in batches:
            # Asked by all ranks in every turn, also by those without samples or memory: the answer is agreed between
            # them, and a rank that did not ask would leave the others waiting.
            if interrupted(done):
                return None
            if batch is None or out_of_memory or not batch.num_samples:
                continue
            found = _sums_if_it_fits(engine, batch)
            out_of_memory = found is None
            sums += [found] if found else []
            done += batch.num_samples
            text_targets += len(batch.text_targets)
            mel_targets += len(batch.code_targets)
    if engine.group.any_rank(out_of_memory):
        raise torch.OutOfMemoryError("out of memory in a validation, on this or another rank")
    text, mel = engine.group.all_reduce_sum([text_targets, mel_targets])
    return mean_losses(sums, text, mel, engine)


def begin_evaluation(engine: Engine, batch: PackedBatch) -> Callable[[], tuple[float, float]] | None:
    """Begin to compute the losses of one micro-batch on this rank, without waiting for the device.

    Args:
        engine: The model and how to compute.
        batch: The micro-batch, not empty.

    Returns:
        Waits for the mean text loss and the mean code loss; None when the device has too little memory.
    """
    with _evaluating(engine):
        sums = _sums_if_it_fits(engine, batch)
    if sums is None:
        return None
    values = added([sums], engine.device)

    def finish() -> tuple[float, float]:
        text, mel, _ = host_values(values)
        return text / len(batch.text_targets), mel / len(batch.code_targets)

    return finish


@contextlib.contextmanager
def _evaluating(engine: Engine) -> Iterator[None]:
    """The model without dropout and gradients, in the precision of the training."""
    engine.model.eval()
    try:
        with torch.no_grad(), autocast(engine.device, engine.precision):
            yield
    finally:
        engine.model.train()


def _sums_if_it_fits(engine: Engine, batch: PackedBatch) -> "LossSums | None":
    # The error is raised only after the loop, on all ranks at once: they have to leave their collectives together.
    with contextlib.suppress(torch.OutOfMemoryError):
        dtype = next(engine.model.parameters()).dtype
        sums: LossSums = engine.model(to_device(batch, engine.device, dtype))
        return sums
    return None


def shares(batches: Sequence[Sequence[int]], rank: int, world_size: int) -> Iterator[Sequence[int]]:
    """One rank's micro-batches: every `world_size`-th one. Empty where the last turn has none left for the rank."""
    for first in range(0, len(batches), world_size):
        # An empty one instead of none: every rank has to make as many turns as the others.
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
