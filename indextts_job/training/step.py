"""One optimizer step: accumulate, normalise by the counts of the whole global batch, clip, update; or discard.

The update does not depend on how the samples are cut into micro-batches (I3): each of them contributes sums, and the
divisors are the numbers of text and code targets of all. Either the whole step is applied or nothing of it (I1).
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from indextts_job.checkpoint.history import Losses, SourceSums
from indextts_job.data.order import derive_seed
from indextts_job.errors import MAX_FINDINGS_SHOWN, DeviceMemoryError, NonFiniteError
from indextts_job.model.batch import PackedBatch
from indextts_job.model.unified_voice import LossSums
from indextts_job.training.engine import (
    Engine,
    added,
    autocast,
    losses_of,
    to_device,
    weights_cast_once,
)
from indextts_job.training.schedule import RATE_FACTOR
from indextts_job.training.source_losses import source_sums

SMALLEST_SCALE = 1.0
"""At this scale gradients are not scaled. If they overflow even then, the step itself is not finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Updated:
    """The step was applied."""

    losses: Losses
    grad_norm: float
    """Norm before clipping."""
    samples: tuple[int, ...]
    """Dataset indices of all ranks, in the order in which each computed them."""
    tokens: int
    scaler_skips: int
    """Tries of this step that overflowed in float16 before the one that was applied."""
    micro_batch_s: float
    """Mean duration of a micro-batch."""
    update_s: float
    """Duration of the exchange of gradients, norm and update; see `StepClock.update_s`."""
    sources: tuple[SourceSums, ...] = ()
    """Code losses of the sources of a mixture."""


@dataclass(frozen=True, slots=True)
class Discarded:
    """The step was given up between two micro-batches; weights and moments are unchanged."""

    micro_batches_done: int


@dataclass(frozen=True, slots=True)
class TargetCounts:
    """Numbers of text and code targets, and of packed rows, of the whole global batch: the divisors of the loss."""

    text: float
    mel: float
    tokens: float


def train_step(
    engine: Engine,
    batches: Sequence[PackedBatch],
    step: int,
    learning_rate: float,
    discard: Callable[[int], bool] = lambda _micro_batches_left: False,
) -> Updated | Discarded:
    """Apply one optimizer step.

    Args:
        batches: This rank's micro-batches of the step; all ranks have the same number of them.
        step: The position; keys dropout.
        learning_rate: The schedule's rate; each parameter group multiplies it by its own factor.
        discard: Called before every micro-batch with the number still to do; True gives the step up.

    Raises:
        NonFiniteError: A loss or gradient is not finite. Nothing was applied.
        torch.OutOfMemoryError: On this or another rank. Nothing was applied; call `reset_step` before another try.
        DeviceMemoryError: In the update, when other ranks may already have applied theirs.
    """
    # Known before the first backward pass, so each micro-batch is divided at once and gradients just add up.
    counts = _target_counts(engine, batches)
    skips = 0
    while True:
        tried = _tried(engine, batches, step, counts, learning_rate, discard)
        if isinstance(tried, Discarded):
            return tried
        if tried.finite:
            return _updated(engine, batches, counts, tried, skips)
        # float16 overflowed: the same step is repeated with a smaller scale. Skipping it, as is common, would lose its
        # samples and let the step number run ahead of the updates.
        if not _scale_lowered(engine.scaler):
            engine.optimizer.zero_grad(set_to_none=True)
            raise _non_finite(step, batches, tried)
        skips += 1


def _target_counts(engine: Engine, batches: Sequence[PackedBatch]) -> TargetCounts:
    text, mel, tokens = engine.group.all_reduce_sum(
        [
            sum(len(batch.text_targets) for batch in batches),
            sum(len(batch.code_targets) for batch in batches),
            sum(batch.num_tokens for batch in batches),
        ]
    )
    return TargetCounts(text=text, mel=mel, tokens=tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tried:
    """One try of a step, which is applied if everything was finite."""

    sums: Sequence[LossSums]
    """Loss sums of this rank's micro-batches that have samples."""
    losses: Losses
    grad_norm: float
    finite: bool
    mel_rows: npt.NDArray[np.float64]
    """[code targets of this rank] their losses, in a mixture; else empty."""
    computed_s: float
    """Duration of all micro-batches."""
    update_s: float


def _tried(
    engine: Engine,
    batches: Sequence[PackedBatch],
    step: int,
    counts: TargetCounts,
    learning_rate: float,
    discard: Callable[[int], bool],
) -> _Tried | Discarded:
    """Compute the gradient of the whole global batch, and apply it if it is finite."""
    engine.clock.begun()
    clear_gradients(engine)
    sums = _accumulated(engine, batches, step, counts, discard)
    if isinstance(sums, Discarded):
        engine.optimizer.zero_grad(set_to_none=True)
        return sums
    engine.clock.accumulated()
    with _fatal_out_of_memory(engine):
        engine.gradients.finish()
        norm = _unscaled_norm(engine)
        # The only wait for the device in a step: a GPU that is waited for twice stands still twice.
        mel_rows = [part.mel_rows.double() for part in sums] if engine.sources else []
        found = torch.cat([added(sums, engine.device), norm.double()[None], *mel_rows]).cpu().numpy()
        grad_norm = float(found[3])
        losses = losses_of(found[:3].tolist(), counts.text, counts.mel, engine)
        # Both are equal on all ranks (reduced gradients, summed losses), so the ranks decide alike without asking.
        finite = math.isfinite(grad_norm) and math.isfinite(losses.total)
        if finite:
            _apply(engine, learning_rate)
    engine.clock.updated()
    return _Tried(
        sums=sums,
        losses=losses,
        grad_norm=grad_norm,
        finite=finite,
        mel_rows=found[4:],
        computed_s=engine.clock.computed_s(),
        update_s=engine.clock.update_s(),
    )


def _accumulated(
    engine: Engine, batches: Sequence[PackedBatch], step: int, counts: TargetCounts, discard: Callable[[int], bool]
) -> list[LossSums] | Discarded:
    """Forward and backward of all micro-batches.

    Raises:
        torch.OutOfMemoryError: On this or another rank.
    """
    group = engine.group
    sums: list[LossSums] = []
    out_of_memory = False
    with weights_cast_once():
        for index, batch in enumerate(batches):
            if discard(len(batches) - index):
                return Discarded(index)
            # Dropout is a function of (seed, step, micro-batch): a repeated step draws the same masks (I2).
            torch.manual_seed(derive_seed(engine.recipe.seed, step, index * group.world_size + group.rank))
            # A rank that has run out of memory computes nothing more, but still calls `discard`, where all ranks agree.
            if batch.num_samples and not out_of_memory:
                last = index == len(batches) - 1
                with engine.gradients.sent_when_complete() if last else contextlib.nullcontext():
                    done = _accumulate_if_it_fits(engine, batch, counts)
                out_of_memory = done is None
                sums += [done] if done else []
    # Also by a rank that has run out of memory: the others have begun to send their gradients, and wait for its own.
    engine.gradients.send_rest()
    # Raised on all ranks together, behind the last collective of the loop; alone, one would leave the others waiting.
    if group.any_rank(out_of_memory):
        engine.gradients.finish()
        raise torch.OutOfMemoryError("out of memory in a micro-batch, on this or another rank")
    return sums


def _updated(
    engine: Engine, batches: Sequence[PackedBatch], counts: TargetCounts, tried: _Tried, skips: int
) -> Updated:
    own = [int(index) for batch in batches for index in batch.sample_indices]
    return Updated(
        losses=tried.losses,
        grad_norm=tried.grad_norm,
        samples=tuple(chain.from_iterable(engine.group.all_gather(own))),
        tokens=int(counts.tokens),
        scaler_skips=skips,
        micro_batch_s=tried.computed_s / len(batches),
        update_s=tried.update_s,
        # Behind the update, which the device computes meanwhile.
        sources=source_sums(engine.sources, batches, tried.mel_rows, engine.group) if engine.sources else (),
    )


def clear_gradients(engine: Engine) -> None:
    """Begin with gradients of zero, in the memory that they have for the whole step."""
    engine.optimizer.zero_grad(set_to_none=True)
    engine.gradients.clear()


def accumulate(engine: Engine, batch: PackedBatch, counts: TargetCounts) -> LossSums:
    """Forward and backward of one micro-batch; its part of the gradient is added to the gradients."""
    dtype = next(engine.model.parameters()).dtype
    with autocast(engine.device, engine.precision):
        sums: LossSums = engine.model(to_device(batch, engine.device, dtype))
    recipe = engine.recipe
    loss = recipe.text_loss_weight * sums.text / counts.text + recipe.mel_loss_weight * sums.mel / counts.mel
    engine.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    # Detached, and still on the device: the graph is freed, and nothing waits for the values yet.
    return LossSums(sums.text.detach(), sums.mel.detach(), sums.mel_correct, sums.mel_rows)


@contextlib.contextmanager
def _fatal_out_of_memory(engine: Engine) -> Iterator[None]:
    """Turn an out of memory inside into an error that ends the attempt where there are several ranks.

    The others may have applied their update already, so the step cannot be repeated.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if engine.group.world_size == 1:
            raise
        raise DeviceMemoryError(
            f"rank {engine.group.rank} ran out of memory in the update, which the others may have done. Set "
            "hardware.capacity_tokens lower. The last checkpoint is intact."
        ) from error


def reset_step(engine: Engine, step: int) -> None:
    """Restore the state before an interrupted step, so that it can be repeated from its start.

    Gradients are removed. Weights and moments change only in kernels that allocate nothing, so a step that ran out of
    memory has not changed them. The optimizer may have raised the update count that it keeps beside each moment; that
    count is the step, so it is set again.

    Args:
        engine: The engine that the step ran on.
        step: The position, which is the number of updates done.
    """
    engine.optimizer.zero_grad(set_to_none=True)
    for values in engine.optimizer.state.values():
        values["step"].fill_(step)
    if engine.scaler.is_enabled():
        engine.scaler.scale(torch.zeros((), device=engine.device))  # the scale is created by its first use
        engine.scaler.update(engine.scaler.get_scale())  # also forgets that gradients were unscaled
    # Blocks of the sizes that did not fit would otherwise stay reserved, and the smaller try could fail as well.
    if engine.device.type == "cuda":
        torch.cuda.empty_cache()


def _accumulate_if_it_fits(engine: Engine, batch: PackedBatch, counts: TargetCounts) -> LossSums | None:
    with contextlib.suppress(torch.OutOfMemoryError):
        return accumulate(engine, batch, counts)
    return None


def _unscaled_norm(engine: Engine) -> Tensor:
    """Norm of the unscaled gradient of the whole global batch, before clipping; gradients are clipped in place."""
    engine.scaler.unscale_(engine.optimizer)
    # Clipped once per step, after all micro-batches and the sum over ranks: clipping parts would depend on the cut.
    limit = engine.grad_clip or math.inf
    if not engine.owners:
        return torch.nn.utils.clip_grad_norm_(engine.model.parameters(), limit)
    for found_inf in (
        engine.scaler._found_inf_per_device(engine.optimizer).values() if engine.scaler.is_enabled() else ()
    ):
        # The scale of all ranks must follow from the gradients of all: a rank sees an overflow in its own only.
        engine.group.begin_sum(found_inf)()
    norm = engine.gradients.norm()
    torch.nn.utils.clip_grads_with_norm_(engine.model.parameters(), limit, norm)
    return norm


def _apply(engine: Engine, learning_rate: float) -> None:
    # Set from the step before every update, so no scheduler has a state that could disagree with the step.
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate * group[RATE_FACTOR]
    engine.scaler.step(engine.optimizer)
    engine.scaler.update()
    if engine.owners:
        engine.gradients.share_weights()  # each rank has updated its own


def _scale_lowered(scaler: torch.amp.GradScaler) -> bool:
    """Lower the scale after an overflow; False when the scale cannot be the cause."""
    scale = scaler.get_scale()
    if not scaler.is_enabled() or scale <= SMALLEST_SCALE:
        return False
    scaler.update()  # unscale_ has recorded the overflow, so this backs off
    return scaler.get_scale() < scale


def _non_finite(step: int, batches: Sequence[PackedBatch], tried: _Tried) -> NonFiniteError:
    bad = _non_finite_batches(batches, tried.sums)
    # An overflow of the gradient alone points to no micro-batch; then all samples of this rank are named.
    names = [name for batch in bad or batches for name in batch.sample_ids]
    shown = ", ".join(names[:MAX_FINDINGS_SHOWN]) + (" …" if len(names) > MAX_FINDINGS_SHOWN else "")
    what = f"the gradient norm is {tried.grad_norm},"
    if bad:
        what = f"the loss of {len(bad)} of {len(batches)} micro-batches is"
    return NonFiniteError(
        f"step {step}: {what} not finite. The weights were not touched. Samples: {shown}. Look at these samples "
        "(codes that do not belong to the text, say), lower schedule.learning_rate, or use bfloat16 or float32 "
        "(hardware.precision). The last checkpoint is intact."
    )


def _non_finite_batches(batches: Sequence[PackedBatch], sums: Sequence[LossSums]) -> list[PackedBatch]:
    computed = [batch for batch in batches if batch.num_samples]  # the others have no sums
    return [
        batch
        for batch, part in zip(computed, sums, strict=True)
        if not bool(torch.isfinite(part.text) & torch.isfinite(part.mel))
    ]
