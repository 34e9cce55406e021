"""Validation over a fixed list of samples in a fixed order. The model is in training mode afterwards in every case."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from operator import attrgetter
from typing import NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

from indextts_job.checkpoint.history import Losses
from indextts_job.errors import MAX_FINDINGS_SHOWN, DataError
from indextts_job.model.batch import PackedBatch
from indextts_job.model.unified_voice import DeviceBatch, LossSums
from indextts_job.training.engine import Engine, added, autocast, host_values, mean_losses, to_device
from indextts_job.training.guard import SampleSums

T = TypeVar("T")


def evaluate(
    engine: Engine,
    batches: Iterable[PackedBatch | None],
    interrupted: Callable[[int], bool],
    *,
    demand_finite: bool = False,
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
        DataError: A loss is not finite, and `demand_finite` is set.
    """

    def of(batch: PackedBatch) -> tuple[LossSums, PackedBatch]:
        return engine.model(on_device(engine, batch)), batch

    found = _of_each(engine, batches, interrupted, of)
    if found is None:
        return None
    text, mel = engine.group.all_reduce_sum(_targets(batch for _, batch in found))
    losses = mean_losses([sums for sums, _ in found], text, mel, engine)
    if demand_finite and not math.isfinite(losses.total):
        _refuse(engine, _samples_of_bad(found))
    return losses


def _targets(batches: Iterable[PackedBatch]) -> list[float]:
    """Numbers of text targets and of code targets."""
    counts = [(len(batch.text_targets), len(batch.code_targets)) for batch in batches]
    return [sum(texts for texts, _ in counts), sum(codes for _, codes in counts)]


def _samples_of_bad(found: Sequence[tuple[LossSums, PackedBatch]]) -> list[str]:
    """Samples of the micro-batches whose losses are not finite."""
    bad = (batch for sums, batch in found if not math.isfinite(float(sums.text + sums.mel)))
    return list(chain.from_iterable(batch.sample_ids for batch in bad))


def _refuse(engine: Engine, mine: Sequence[str]) -> NoReturn:
    """Raise the error of a validation whose losses are not finite, on all ranks alike.

    Args:
        engine: Its group tells the samples of all ranks.
        mine: Samples of this rank among which the bad ones are.
    """
    every = list(chain.from_iterable(engine.group.all_gather(list(mine))))
    shown = ", ".join(every[:MAX_FINDINGS_SHOWN]) + (" …" if len(every) > MAX_FINDINGS_SHOWN else "")
    raise DataError(
        f"the loss of a validation is not finite. Samples: {shown}. Everything is committed. Look at these records of "
        "data.validation_manifests (an emotion or conditioning array with absurd values, say); if there is nothing "
        "wrong with them, the training has broken down: go on from an earlier checkpoint with a lower "
        "schedule.learning_rate, or use bfloat16 or float32 (hardware.precision)."
    )


def _of_each(
    engine: Engine,
    batches: Iterable[PackedBatch | None],
    interrupted: Callable[[int], bool],
    compute: Callable[[PackedBatch], T],
) -> list[T] | None:
    """What `compute` gives for every micro-batch of this rank; None when interrupted.

    Raises:
        torch.OutOfMemoryError: On this or another rank.
    """
    found: list[T] = []
    samples = 0
    out_of_memory = False
    with evaluating(engine):
        for batch in batches:
            # Asked by all ranks in every turn, also by those without samples or memory: the answer is agreed between
            # them, and a rank that did not ask would leave the others waiting.
            if interrupted(samples):
                return None
            if batch is None or out_of_memory or not batch.num_samples:
                continue
            out_of_memory = True
            # Raised only behind the loop, on all ranks at once: they have to leave their collectives together.
            with contextlib.suppress(torch.OutOfMemoryError):
                found.append(compute(batch))
                samples += batch.num_samples
                out_of_memory = False
    if engine.group.any_rank(out_of_memory):
        raise torch.OutOfMemoryError("out of memory in a validation, on this or another rank")
    return found


@dataclass(frozen=True, slots=True)
class ByLanguage:
    """Losses of a validation set whose languages are told apart."""

    losses: Losses
    """Over all samples."""
    languages: Mapping[str, SampleSums]


@dataclass(frozen=True, slots=True)
class _SampleLoss:
    """Sums of one sample. Plain values: they travel between ranks."""

    index: int
    text: float
    mel: float
    text_targets: int
    mel_targets: int


def evaluate_samples(
    engine: Engine,
    batches: Iterable[PackedBatch | None],
    language_of: Callable[[int], str],
    interrupted: Callable[[int], bool],
) -> ByLanguage | None:
    """As `evaluate`, with the loss of every sample.

    The sums are added up in the order of the samples, whatever the number of ranks.

    Args:
        engine: The model and how to compute; the optimizer is not touched.
        batches: See `evaluate`.
        language_of: The language of a sample, by its index in the dataset.
        interrupted: See `evaluate`.
    """

    def of(batch: PackedBatch) -> tuple[list[_SampleLoss], int, Sequence[str]]:
        text, mel, hits = engine.model.target_losses(on_device(engine, batch))
        return list(_by_sample(batch, text, mel)), int(hits), batch.sample_ids

    found = _of_each(engine, batches, interrupted, of)
    if found is None:
        return None
    mine = list(chain.from_iterable(samples for samples, *_ in found))
    names = list(chain.from_iterable(ids for *_, ids in found))
    everybody = sorted(chain.from_iterable(engine.group.all_gather(mine)), key=attrgetter("index"))
    (hits_of_all,) = engine.group.all_reduce_sum([sum(hits for _, hits, _ in found)])
    if any(map(_is_bad, everybody)):
        _refuse(engine, list(compress(names, map(_is_bad, mine))))
    whole = _sums(everybody)
    losses = Losses(
        text_loss=whole.text_loss,
        mel_loss=whole.mel_loss,
        mel_top1=hits_of_all / sum(whole.mel_targets),
        total=engine.recipe.text_loss_weight * whole.text_loss + engine.recipe.mel_loss_weight * whole.mel_loss,
    )
    return ByLanguage(losses, _by_language(everybody, language_of))


def _is_bad(sample: _SampleLoss) -> bool:
    return not math.isfinite(sample.text + sample.mel)


def _by_language(samples: Iterable[_SampleLoss], language_of: Callable[[int], str]) -> dict[str, SampleSums]:
    languages: dict[str, list[_SampleLoss]] = {}
    for one in samples:
        languages.setdefault(language_of(one.index), []).append(one)
    return {language: _sums(of_language) for language, of_language in languages.items()}


def _by_sample(batch: PackedBatch, text: Tensor, mel: Tensor) -> Iterator[_SampleLoss]:
    text_targets, mel_targets = batch.text_sizes, batch.code_sizes
    # In float64 on the host: sums on a device may be added up in any order.
    text_sums, mel_sums = (
        np.add.reduceat(losses.double().cpu().numpy(), np.cumsum(counts) - counts)
        for losses, counts in ((text, text_targets), (mel, mel_targets))
    )
    columns = (batch.sample_indices, text_sums, mel_sums, text_targets, mel_targets)
    for row in zip(*(column.tolist() for column in columns), strict=True):
        yield _SampleLoss(*row)


def _sums(samples: Sequence[_SampleLoss]) -> SampleSums:
    columns = ("text", "mel", "text_targets", "mel_targets")
    return SampleSums(*(list(map(attrgetter(name), samples)) for name in columns))


def begin_evaluation(engine: Engine, batch: PackedBatch) -> Callable[[], tuple[float, float]] | None:
    """Begin to compute the losses of one micro-batch on this rank, without waiting for the device.

    Args:
        engine: The model and how to compute.
        batch: The micro-batch, not empty.

    Returns:
        Waits for the mean text loss and the mean code loss; None when the device has too little memory.
    """
    sums: LossSums | None = None
    # Without the memory only the caller can decide: other ranks may have it.
    with evaluating(engine), contextlib.suppress(torch.OutOfMemoryError):
        sums = engine.model(on_device(engine, batch))
    if sums is None:
        return None
    values = added([sums], engine.device)

    def finish() -> tuple[float, float]:
        text, mel, _ = host_values(values)
        return text / len(batch.text_targets), mel / len(batch.code_targets)

    return finish


@contextlib.contextmanager
def evaluating(engine: Engine) -> Iterator[None]:
    """The model without dropout and gradients, in the precision of the training."""
    engine.model.eval()
    try:
        with torch.no_grad(), autocast(engine.device, engine.precision):
            yield
    finally:
        engine.model.train()


def on_device(engine: Engine, batch: PackedBatch) -> DeviceBatch:
    """A batch on the model's device, in the precision of its weights."""
    return to_device(batch, engine.device, next(engine.model.parameters()).dtype)


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
