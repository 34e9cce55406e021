"""One optimizer step: accumulate, normalise by the counts of the whole global batch, clip, update; or discard.

The update does not depend on how the samples are cut (I3): micro-batches contribute sums, and the divisors are the
numbers of text and code targets of all of them. Either the whole step is applied or nothing of it (I1).
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from indextts_job.checkpoint.history import Losses
from indextts_job.data.order import derive_seed
from indextts_job.errors import MAX_FINDINGS_SHOWN, DeviceMemoryError, NonFiniteError
from indextts_job.hardware.plan import Precision
from indextts_job.model.batch import PackedBatch
from indextts_job.model.unified_voice import LossSums, UnifiedVoice, to_device
from indextts_job.training.distributed import ProcessGroup, SingleProcess
from indextts_job.training.recipe import RecipeConfig
from indextts_job.training.schedule import RATE_FACTOR

AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SMALLEST_SCALE = 1.0
"""Below it float16 gradients overflow without any scaling: the step itself is not finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What a step works on."""

    model: UnifiedVoice
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    """Disabled unless the precision is float16."""
    device: torch.device
    precision: Precision
    recipe: RecipeConfig
    grad_clip: float
    group: ProcessGroup = field(default_factory=SingleProcess)
    owners: Sequence[int] = ()
    """The rank that updates each parameter and has its moments; empty = every rank all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Updated:
    """The step was applied."""

    losses: Losses
    grad_norm: float
    """Before clipping."""
    samples: tuple[int, ...]
    """Dataset indices, in the order in which they were computed."""
    tokens: int
    scaler_skips: int
    """Tries that float16 overflowed before this one."""
    micro_batch_s: float
    """Mean duration of a micro-batch."""
    update_s: float


@dataclass(frozen=True, slots=True)
class Discarded:
    """The cycle was given up between micro-batches; weights and moments are those from before it."""

    micro_batches_done: int


@dataclass(frozen=True, slots=True)
class TargetCounts:
    """Of the whole global batch: the divisors of the loss."""

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
        engine: Model, optimizer and how to compute.
        batches: This rank's micro-batches of the step; all ranks have the same number of them.
        step: The position; keys dropout.
        learning_rate: Of this update.
        discard: Asked before every micro-batch with the number still to do; True gives the cycle up.

    Raises:
        NonFiniteError: A loss or gradient is not finite. Nothing was applied.
        torch.OutOfMemoryError: On this or another rank. Nothing was applied; `reset_step` comes before another try.
        DeviceMemoryError: In the update, where other ranks may be done with theirs.
    """
    group = engine.group
    counts = TargetCounts(
        *group.all_reduce_sum(
            [
                sum(len(batch.text_targets) for batch in batches),
                sum(len(batch.code_targets) for batch in batches),
                sum(batch.num_tokens for batch in batches),
            ]
        )
    )
    skips = 0
    while True:
        started_s = time.monotonic()
        engine.optimizer.zero_grad(set_to_none=True)
        sums: list[LossSums] = []
        out_of_memory = False
        for index, batch in enumerate(batches):
            if discard(len(batches) - index):
                engine.optimizer.zero_grad(set_to_none=True)
                return Discarded(index)
            # Dropout is a function of (seed, step, micro-batch): a repeated step draws the same masks (I2).
            torch.manual_seed(derive_seed(engine.recipe.seed, step, index * group.world_size + group.rank))
            # Who has run out of memory goes on to ask with the others, and to tell them in the end.
            if batch.num_samples and not out_of_memory:
                done = _accumulate_if_it_fits(engine, batch, counts)
                out_of_memory = done is None
                sums += [done] if done else []
        if group.any_rank(out_of_memory):
            raise torch.OutOfMemoryError("out of memory in a micro-batch, on this or another rank")
        losses = mean_losses(sums, counts.text, counts.mel, engine)
        computed_s = time.monotonic()
        with _final_on_several_ranks(engine):
            group.all_reduce_gradients(engine.model.parameters())
            grad_norm = _unscaled_norm(engine)
            finite = math.isfinite(grad_norm) and math.isfinite(losses.total)
            if finite:
                _apply(engine, learning_rate)
        if finite:
            return Updated(
                losses=losses,
                grad_norm=grad_norm,
                samples=tuple(
                    chain.from_iterable(group.all_gather([int(i) for b in batches for i in b.sample_indices]))
                ),
                tokens=int(counts.tokens),
                scaler_skips=skips,
                micro_batch_s=(computed_s - started_s) / len(batches),
                update_s=time.monotonic() - computed_s,
            )
        # float16 overflowed: the same step again with a smaller scale, so that its samples are not lost.
        if not _scale_lowered(engine.scaler):
            engine.optimizer.zero_grad(set_to_none=True)
            raise _non_finite(step, batches, sums, grad_norm)
        skips += 1


def accumulate(engine: Engine, batch: PackedBatch, counts: TargetCounts) -> LossSums:
    """Forward and backward of one micro-batch; its share of the gradients is added to what is there."""
    dtype = next(engine.model.parameters()).dtype
    with autocast(engine.device, engine.precision):
        sums: LossSums = engine.model(to_device(batch, engine.device, dtype))
    recipe = engine.recipe
    loss = recipe.text_loss_weight * sums.text / counts.text + recipe.mel_loss_weight * sums.mel / counts.mel
    engine.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    return LossSums(sums.text.detach(), sums.mel.detach(), sums.mel_correct)


@contextlib.contextmanager
def _final_on_several_ranks(engine: Engine) -> Iterator[None]:
    """From here on one rank cannot go back by itself."""
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
    """Put away what a step left that broke off anywhere, so that it can be done again from its start.

    Gradients go. Moments and weights change in kernels that allocate nothing, so these have not run. The counts of
    updates that the optimizer keeps beside each moment may have been raised before them; they are the step (R19).

    Args:
        engine: What the step worked on.
        step: The position; as many updates are done.
    """
    engine.optimizer.zero_grad(set_to_none=True)
    for values in engine.optimizer.state.values():
        values["step"].fill_(step)
    if engine.scaler.is_enabled():
        engine.scaler.scale(torch.zeros((), device=engine.device))  # it begins to exist with its first use
        engine.scaler.update(engine.scaler.get_scale())  # also forgets that gradients were unscaled
    if engine.device.type == "cuda":
        torch.cuda.empty_cache()


def mean_losses(sums: Sequence[LossSums], text_targets: float, mel_targets: float, engine: Engine) -> Losses:
    """Losses over the samples of several micro-batches of all ranks.

    Args:
        sums: Of this rank's micro-batches.
        text_targets: Of all ranks.
        mel_targets: Of all ranks.
        engine: Adds up, and has the weights of the total.
    """
    own = [
        _host_sum([part.text for part in sums]),
        _host_sum([part.mel for part in sums]),
        _host_sum([part.mel_correct for part in sums]),
    ]
    text_sum, mel_sum, correct = engine.group.all_reduce_sum(own)
    text, mel, recipe = text_sum / text_targets, mel_sum / mel_targets, engine.recipe
    return Losses(
        text_loss=text,
        mel_loss=mel,
        mel_top1=correct / mel_targets,
        total=recipe.text_loss_weight * text + recipe.mel_loss_weight * mel,
    )


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Mixed precision for the forward pass; off for float32."""
    dtype = AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def _accumulate_if_it_fits(engine: Engine, batch: PackedBatch, counts: TargetCounts) -> LossSums | None:
    with contextlib.suppress(torch.OutOfMemoryError):
        return accumulate(engine, batch, counts)
    return None


def _host_sum(values: Sequence[Tensor]) -> float:
    if not values:
        return 0.0
    return float(torch.stack(list(values)).double().sum())


def _unscaled_norm(engine: Engine) -> float:
    """Norm of the true gradient; gradients are clipped to it in place."""
    engine.scaler.unscale_(engine.optimizer)
    limit = engine.grad_clip or math.inf
    return float(torch.nn.utils.clip_grad_norm_(engine.model.parameters(), limit))


def _apply(engine: Engine, learning_rate: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate * group[RATE_FACTOR]
    parameters = list(engine.model.parameters())
    for parameter, owner in zip(parameters, engine.owners, strict=False):
        if owner != engine.group.rank:
            parameter.grad = None  # the optimizer leaves it alone then
    engine.scaler.step(engine.optimizer)
    engine.scaler.update()
    if engine.owners:
        engine.group.broadcast(parameters, engine.owners)


def _scale_lowered(scaler: torch.amp.GradScaler) -> bool:
    """Lower the scale after an overflow; False when scaling is not the cause."""
    scale = scaler.get_scale()
    if not scaler.is_enabled() or scale <= SMALLEST_SCALE:
        return False
    scaler.update()  # unscale_ has recorded the overflow, so this backs off
    return scaler.get_scale() < scale


def _non_finite(
    step: int, batches: Sequence[PackedBatch], sums: Sequence[LossSums], grad_norm: float
) -> NonFiniteError:
    computed = [batch for batch in batches if batch.num_samples]
    bad = [
        batch
        for batch, part in zip(computed, sums, strict=True)
        if not bool(torch.isfinite(part.text) & torch.isfinite(part.mel))
    ]
    names = [name for batch in bad or batches for name in batch.sample_ids]
    shown = ", ".join(names[:MAX_FINDINGS_SHOWN]) + (" …" if len(names) > MAX_FINDINGS_SHOWN else "")
    what = f"the loss of {len(bad)} of {len(batches)} micro-batches is" if bad else f"the gradient norm is {grad_norm},"
    return NonFiniteError(
        f"step {step}: {what} not finite. The weights were not touched. Samples: {shown}. Look at these samples "
        "(codes that do not belong to the text, say), lower schedule.learning_rate, or use bfloat16 or float32 "
        "(hardware.precision). The last checkpoint is intact."
    )
