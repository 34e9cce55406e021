"""The objects that a step and a validation share: model, device, precision, and mean losses over all ranks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from indextts_job.checkpoint.history import Losses
from indextts_job.hardware.plan import Precision
from indextts_job.model.batch import PackedBatch
from indextts_job.model.transformer import SampleEdges
from indextts_job.model.unified_voice import DeviceBatch, LossSums, UnifiedVoice
from indextts_job.training.distributed import ProcessGroup, SingleProcess
from indextts_job.training.gradients import GradientSum
from indextts_job.training.recipe import RecipeConfig

AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Model and optimizer with the device, precision, settings and process group that they are computed with."""

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
    """For each parameter the rank that updates it and holds its moments; empty = every rank updates all."""
    gradients: GradientSum = field(default_factory=GradientSum)
    """Adds up the gradients of all ranks; made with the same group and owners."""


def to_device(batch: PackedBatch, device: torch.device, dtype: torch.dtype = torch.float32) -> DeviceBatch:
    """Copy a packed micro-batch to the device; floating-point arrays become `dtype`."""

    def copied(name: str) -> Tensor:
        array = torch.from_numpy(getattr(batch, name))
        if device.type == "cuda":
            array = array.pin_memory()  # only a copy from pinned memory runs in parallel with the computation
        return array.to(device, dtype if array.is_floating_point() else None, non_blocking=True)

    names = (name for name in DeviceBatch.__dataclass_fields__ if name != "edges")
    # From the array on the host: reading them from the device would wait for it.
    lengths = [int(n) for n in batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]]
    return DeviceBatch(**{name: copied(name) for name in names}, edges=SampleEdges(copied("cu_seqlens"), lengths))


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Mixed precision for the forward pass; off for float32."""
    dtype = AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def mean_losses(sums: Sequence[LossSums], text_targets: float, mel_targets: float, engine: Engine) -> Losses:
    """Losses over the samples of several micro-batches of all ranks.

    Args:
        sums: Summed losses of this rank's micro-batches, one each.
        text_targets: Number of text targets of all ranks.
        mel_targets: Number of code targets of all ranks.
        engine: Its group adds up; its recipe has the weights of the total.
    """
    own = [
        _host_sum([part.text for part in sums]),
        _host_sum([part.mel for part in sums]),
        _host_sum([part.mel_correct for part in sums]),
    ]
    # Sums are added, not means: micro-batches and ranks have different numbers of targets.
    text_sum, mel_sum, correct = engine.group.all_reduce_sum(own)
    text, mel, recipe = text_sum / text_targets, mel_sum / mel_targets, engine.recipe
    return Losses(
        text_loss=text,
        mel_loss=mel,
        mel_top1=correct / mel_targets,
        total=recipe.text_loss_weight * text + recipe.mel_loss_weight * mel,
    )


def _host_sum(values: Sequence[Tensor]) -> float:
    # A rank has no micro-batch with samples where there are fewer of them than ranks.
    if not values:
        return 0.0
    # One stacked copy to the host: a read of each value would wait for the device as many times.
    return float(torch.stack(list(values)).double().sum())
