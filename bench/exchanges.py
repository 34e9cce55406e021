"""Ways to add up gradients over several ranks, each as a step on a model of its own: ours, its forerunner, torch's."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from bench.workload import engine, model_config, utterances
from indextts_job.model.batch import PackedBatch, collate
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.training.distributed import ProcessGroup
from indextts_job.training.engine import Engine, to_device
from indextts_job.training.gradients import GradientSum
from indextts_job.training.recipe import OptimizerConfig
from indextts_job.training.state import build_optimizer, owners_of
from indextts_job.training.step import train_step

BUCKETS = 76
"""As many as the released model has."""
Step = Callable[[Sequence[PackedBatch]], None]


class EachParameter(GradientSum):
    """What there was before: one all-reduce of each gradient, begun after the last micro-batch."""

    def __init__(self, parameters: Sequence[nn.Parameter], group: ProcessGroup, owners: Sequence[int] = ()) -> None:
        super().__init__()
        self._all, self._ranks, self._of = list(parameters), group, owners

    def send_rest(self) -> None:
        """Add up."""
        for done in [self._ranks.begin_sum(_gradient(parameter)) for parameter in self._all]:
            done()

    def norm(self) -> Tensor:
        """All ranks have all gradients; those of others are removed afterwards."""
        norm = torch.nn.utils.get_total_norm([_gradient(parameter) for parameter in self._all])
        for parameter, owner in zip(self._all, self._of, strict=True):
            if owner != self._ranks.rank:
                parameter.grad = None
        return norm

    def share_weights(self) -> None:
        """One broadcast of each parameter."""
        self._ranks.broadcast(self._all, self._of)


class ByDDP(GradientSum):
    """DistributedDataParallel with a hook that adds up."""

    def __init__(self, model: DistributedDataParallel) -> None:
        super().__init__()
        self._ddp = model
        self._views: list[Tensor | None] = [None for _ in model.parameters()]
        model.register_comm_hook(None, _added_up)
        model.require_backward_grad_sync = False

    def clear(self) -> None:
        """Put back the views of the buckets: without them DDP has every gradient in memory twice."""
        for parameter, view in zip(self._ddp.parameters(), self._views, strict=True):
            parameter.grad = view.zero_() if view is not None else None

    @contextmanager
    def sent_when_complete(self) -> Iterator[None]:
        """DDP's own overlap."""
        self._ddp.require_backward_grad_sync = True
        try:
            yield
        finally:
            self._ddp.require_backward_grad_sync = False

    def finish(self) -> None:
        """DDP has waited at the end of the backward pass."""
        self._views = [parameter.grad for parameter in self._ddp.parameters()]


def _added_up(_state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    added: torch.futures.Future[Tensor] = work.get_future().then(lambda future: future.value()[0])
    return added


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def micro_batches(rank: int, width: int, layers: int, count: int) -> list[PackedBatch]:
    """One utterance each, the same number on all ranks."""
    config = model_config(width, layers)
    return [collate([sample], config) for sample in utterances(count, config, seed=rank)]


def ddp(model: UnifiedVoice, bucket_bytes: int, *, find_unused: bool) -> DistributedDataParallel:
    """Without the broadcasts of weights and buffers that the attempt has no use for."""
    names = [name for name, _ in model.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(
        model,
        init_sync=False,
        find_unused_parameters=find_unused,
        gradient_as_bucket_view=True,
        bucket_cap_mb=bucket_bytes / 2**20,
    )


def exchange(name: str, group: ProcessGroup, width: int, layers: int) -> Step:
    """A step that exchanges gradients in the named way."""
    return _fsdp(group, width, layers) if name == "FSDP2" else _training(engine_of(name, group, width, layers))


def engine_of(name: str, group: ProcessGroup, width: int, layers: int) -> Engine:
    """The parts of a step that exchanges gradients in the named way."""
    base = replace(engine(model_config(width, layers)), group=group)
    parameters = list(base.model.parameters())
    bucket_bytes = sum(parameter.nbytes for parameter in parameters) // BUCKETS
    if name.startswith("DDP"):
        model = ddp(base.model, bucket_bytes, find_unused="unused" in name)
        return replace(base, model=model, gradients=ByDDP(model))  # type: ignore[arg-type]  # passes all calls on
    owners = owners_of(base.model, group.world_size) if "sharded" in name else []
    names = [name for name, _ in base.model.named_parameters()]
    mine = {names[index] for index, owner in enumerate(owners) if owner == group.rank}
    optimizer = build_optimizer(base.model, OptimizerConfig(), mine if owners else None)
    gradients: GradientSum = EachParameter(parameters, group, owners)
    if name.startswith("buckets"):
        gradients = GradientSum(parameters, group, owners, bucket_bytes)
    return replace(base, optimizer=optimizer, owners=owners, gradients=gradients)


def _training(parts: Engine) -> Step:
    steps = iter(range(10**9))

    def step(batches: Sequence[PackedBatch]) -> None:
        train_step(parts, batches, next(steps), 1e-4)

    return step


def _fsdp(group: ProcessGroup, width: int, layers: int) -> Step:
    """Sharded as little as FSDP2 can: weights are gathered once for each step, gradients added up once."""
    base = replace(engine(model_config(width, layers)), group=group)
    shared = fsdp(base.model, group.world_size)
    optimizer = torch.optim.AdamW(base.model.parameters(), fused=True)

    def step(batches: Sequence[PackedBatch]) -> None:
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            shared.set_requires_gradient_sync(last)
            shared.set_reshard_after_backward(last)
            sums = base.model(to_device(batch, base.device))
            ((sums.text + sums.mel) / batch.num_tokens).backward()
        torch.nn.utils.clip_grad_norm_(base.model.parameters(), math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        group.any_rank(False)  # noqa: FBT003  # the end of the step of all

    return step


def fsdp(model: UnifiedVoice, world_size: int) -> FSDPModule:
    """The model, its blocks and the rest sharded over all ranks; gradients are added up."""
    mesh = init_device_mesh("cpu", (world_size,))
    for block in model.gpt.h:
        fully_shard(block, mesh=mesh, reshard_after_forward=False)
    shared = fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
    return shared
