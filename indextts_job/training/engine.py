"""The objects that a step and a validation share: model, device, precision, and mean losses over all ranks."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from indextts_job.checkpoint.history import Losses
from indextts_job.hardware.plan import Precision
from indextts_job.layout import offsets
from indextts_job.model.attention import SampleEdges, longest_bound
from indextts_job.model.batch import Allocate, Bytes, PackedBatch, pageable
from indextts_job.model.unified_voice import DeviceBatch, LossSums, UnifiedVoice
from indextts_job.training.distributed import ProcessGroup, SingleProcess
from indextts_job.training.gradients import GradientSum
from indextts_job.training.recipe import RecipeConfig
from indextts_job.training.source_losses import Sources
from indextts_job.training.step_clock import StepClock, clock_of

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
    sources: Sources | None = None
    """Told apart in the losses of steps; None where all samples are one source."""
    clock: StepClock = field(init=False)
    """Measures the parts of a step as the device computes them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "clock", clock_of(self.device))


def allocator(device: torch.device) -> Allocate:
    """Gives memory for micro-batches from which copies to the device run in parallel with the computation."""
    if device.type != "cuda":
        return pageable
    index = torch.cuda.current_device()

    def pinned(size: int) -> Bytes:
        # The current GPU is a property of the thread: in the loader's it would be the first one, and every rank would
        # occupy some memory there.
        torch.cuda.set_device(index)
        return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()

    return pinned


def to_device(batch: PackedBatch, device: torch.device, dtype: torch.dtype = torch.float32) -> DeviceBatch:
    """Copy a packed micro-batch to the device in one piece; floating-point arrays become `dtype`."""
    arrays = batch.arrays()
    # On a CPU the arrays are used where they are.
    buffer = torch.from_numpy(batch.buffer).to(device, non_blocking=True)
    found: dict[str, Tensor] = {}
    for name, begin, end in offsets(arrays):
        like = torch.from_numpy(arrays[name])
        tensor = buffer[begin:end].view(like.dtype).view(like.shape)
        found[name] = tensor.to(dtype) if like.is_floating_point() else tensor
    # From the array on the host: reading them from the device would wait for it.
    lengths = [int(n) for n in batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]]
    return DeviceBatch(edges=SampleEdges(found.pop("cu_seqlens"), lengths, longest_bound(lengths)), **found)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Mixed precision for the forward pass; off for float32."""
    dtype = AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


@contextlib.contextmanager
def weights_cast_once() -> Iterator[None]:
    """Inside, all micro-batches share the 16-bit copies of the weights that autocast makes.

    Otherwise autocast casts every weight again in every micro-batch. Valid while no weight changes.
    """
    # What `torch.autocast` does itself when one context is entered inside another; without entering one here, because
    # backward passes run outside of it.
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        # Whatever the nesting: the weights are going to change.
        torch.clear_autocast_cache()


def mean_losses(sums: Sequence[LossSums], text_targets: float, mel_targets: float, engine: Engine) -> Losses:
    """Losses over the samples of several micro-batches of all ranks.

    Args:
        sums: Summed losses of this rank's micro-batches, one each.
        text_targets: Number of text targets of all ranks.
        mel_targets: Number of code targets of all ranks.
        engine: Its group adds up; its recipe has the weights of the total.
    """
    return losses_of(host_values(added(sums, engine.device)), text_targets, mel_targets, engine)


def added(sums: Sequence[LossSums], device: torch.device) -> Tensor:
    """[3] float64 on the device: text loss, code loss and right codes, summed over micro-batches."""
    # A rank has no micro-batch with samples where there are fewer of them than ranks.
    if not sums:
        return torch.zeros(3, dtype=torch.float64, device=device)
    rows = [torch.stack([part.text, part.mel, part.mel_correct.to(part.text.dtype)]) for part in sums]
    return torch.stack(rows).double().sum(0)


def host_values(tensor: Tensor) -> list[float]:
    """The values of a tensor. Waits for the device."""
    return [float(value) for value in tensor.tolist()]


def losses_of(own: Sequence[float], text_targets: float, mel_targets: float, engine: Engine) -> Losses:
    """See `mean_losses`; `own` are this rank's values of `added`."""
    # Sums are added, not means: micro-batches and ranks have different numbers of targets.
    text_sum, mel_sum, correct = engine.group.all_reduce_sum(own)
    text, mel, recipe = text_sum / text_targets, mel_sum / mel_targets, engine.recipe
    return Losses(
        text_loss=text,
        mel_loss=mel,
        mel_top1=correct / mel_targets,
        total=recipe.text_loss_weight * text + recipe.mel_loss_weight * mel,
    )
