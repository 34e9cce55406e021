"""The sum of the gradients over all ranks, sent in buckets while the last backward pass still computes.

`DistributedDataParallel` sends as many bytes and needs the same time (`bench/ranks.py`, 1 Gbit/s: 0.79 and ours 0.84 of
one all-reduce for each parameter, quartiles 0.74 … 0.88 and 0.69 … 0.88). The buckets are our own because a step has to
end on all ranks in every way, and must be repeatable (`bench/rank_traps.py`):

- The layout of the buckets follows from the parameters alone, so a restart adds up in the same order (I2). DDP lays its
  buckets out again after its first backward pass: on three ranks a tenth of the gradients after a restart had other
  bits. With `find_unused_parameters` it does not, but searches every graph and warns on every rank that it need not.
- `send_rest` sends whatever has not been sent. A rank without samples, and one that has run out of memory before or in
  the middle of the last backward pass, completes the exchange by this one call. With DDP the collectives of the ranks
  no longer match in all three cases, and after the last of them it cannot be used again.
- With sharded moments each bucket belongs to one rank and is added up there only; the owner then sends the updated
  weights, in the same buckets. Both together send as much as one all-reduce, instead of 1.5 times as much, and whole
  tensors have an owner, so checkpoints do not know the world size.

FSDP2's `fully_shard` cannot be used for the last: its all-gathers are part of the forward pass, so a rank that runs out
of memory there leaves the others waiting until the time-out ends the attempt. Over gloo it also sends 1.5 times as
much, because gloo's reduce-scatter is an all-reduce.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from indextts_job.training.distributed import ProcessGroup, SingleProcess

BUCKET_BYTES = 25 * 2**20
"""DDP's default: large enough for the full rate of a network, while the released model still has 76 of them."""

ALIGNMENT = 64
"""Values, 256 bytes of float32: what CUDA's own allocator gives every tensor at least."""


@dataclass(slots=True)
class _Bucket:
    """Parameters whose gradients lie one behind the other in one tensor."""

    owner: int | None
    """The rank that updates the parameters; None = every rank does."""
    parameters: list[nn.Parameter]
    flat: Tensor
    views: list[Tensor]
    """The part of `flat` of each parameter; its gradient."""
    missing: set[int] = field(default_factory=set)
    """Indices of the parameters whose gradient is not complete yet."""


class GradientSum:
    """Holds the gradients of all trained parameters and adds them up over all ranks; one process needs no buckets."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] = (),
        group: ProcessGroup | None = None,
        owners: Sequence[int] = (),
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        """Allocate the gradients, which stay in memory from now on.

        Args:
            parameters: All trained parameters, in the order of the forward pass.
            group: All ranks.
            owners: For each parameter the rank that updates it; empty = all ranks update all.
            bucket_bytes: Least size of a bucket but the last of its owner.
        """
        self._group = group or SingleProcess()
        self._parameters = list(parameters)
        self._owners = owners
        self._buckets: list[_Bucket] = []
        self._sent: list[Callable[[], None]] = []
        self._sending = False
        if self._group.world_size > 1:
            self._buckets = _buckets(self._parameters, owners, bucket_bytes)
            # Communicators are made by the first use, and take memory. Now, because later the gradient of the first
            # step would wait for that, at the moment at which memory is shortest.
            self._group.begin_sum(torch.zeros_like(self._buckets[0].flat[:1]))()
        for number, bucket in enumerate(self._buckets):
            for index, parameter in enumerate(bucket.parameters):
                complete = partial(self._complete, number, index)
                parameter.register_post_accumulate_grad_hook(complete)  # type: ignore[no-untyped-call]

    def clear(self) -> None:
        """Set all gradients to zero. They lie in the buckets from now on, where backward passes add to them."""
        for bucket in self._buckets:
            bucket.flat.zero_()
            for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
                parameter.grad = view

    @contextmanager
    def sent_when_complete(self) -> Iterator[None]:
        """In the last backward pass: send each bucket as soon as it and all before it are complete."""
        for bucket in self._buckets:
            bucket.missing = set(range(len(bucket.parameters)))
        self._sending = True
        try:
            yield
        finally:
            self._sending = False

    def send_rest(self) -> None:
        """Send the buckets that have not been sent, with whatever they hold.

        All ranks call it after their last micro-batch, whether it was computed or not: collectives are matched by
        their order, and a bucket that one rank does not send is waited for by the others.
        """
        for bucket in self._buckets[len(self._sent) :]:
            self._send(bucket)

    def finish(self) -> None:
        """Wait until all buckets are added up.

        With owners, gradients of parameters that other ranks update are removed: this rank does not have their sum.
        """
        sent, self._sent = self._sent, []
        for done in sent:
            done()
        for bucket in self._buckets:
            if bucket.owner not in (None, self._group.rank):
                for parameter in bucket.parameters:
                    parameter.grad = None  # the optimizer skips parameters without a gradient

    def share_weights(self) -> None:
        """Copy the weights of each owner to all other ranks; gradients are lost."""
        with torch.no_grad():
            # The buckets are not needed any more, so the weights are put together there without further memory.
            for bucket in self._buckets:
                if bucket.owner == self._group.rank:
                    torch._foreach_copy_(bucket.views, tuple(bucket.parameters))
            owners = [bucket.owner for bucket in self._buckets if bucket.owner is not None]
            self._group.broadcast([bucket.flat for bucket in self._buckets], owners)
            for bucket in self._buckets:
                if bucket.owner != self._group.rank:
                    torch._foreach_copy_(tuple(bucket.parameters), bucket.views)

    def norm(self) -> Tensor:
        """The norm of all gradients where each rank has those of its own parameters: the same bits as on one rank.

        Equal to what `clip_grad_norm_` computes: the norm of the norms of all tensors, in the order of the parameters.
        """
        own = [index for index, owner in enumerate(self._owners) if owner == self._group.rank]
        found = torch._foreach_norm([_gradient(self._parameters[index]) for index in own])
        norms = dict(zip(own, found, strict=True))
        zero = torch.zeros_like(self._buckets[0].flat[0])
        of_all = torch.stack([norms.get(index, zero) for index in range(len(self._parameters))])
        # One rank has each of them and the others have zeros, so this sum is exact.
        self._group.begin_sum(of_all)()
        norm: Tensor = torch.linalg.vector_norm(of_all)
        return norm

    def _complete(self, number: int, index: int, _parameter: nn.Parameter) -> None:
        """Called by autograd when a gradient has been added up within this rank."""
        if not self._sending:
            return
        if number < len(self._sent):
            raise RuntimeError("a gradient changed after it had been sent: a parameter is used by two graphs")
        self._buckets[number].missing.discard(index)
        # In the order of the list, whichever is complete first: the order has to be the same on all ranks.
        for bucket in self._buckets[len(self._sent) :]:
            if bucket.missing:
                break
            self._send(bucket)

    def _send(self, bucket: _Bucket) -> None:
        for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
            if parameter.grad is not view:
                raise RuntimeError("a gradient does not lie in its bucket: something has replaced it")
        self._sent.append(self._group.begin_sum(bucket.flat, bucket.owner))


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        raise RuntimeError("a parameter of this rank has no gradient")
    return parameter.grad


def _buckets(parameters: Sequence[nn.Parameter], owners: Sequence[int], bucket_bytes: int) -> list[_Bucket]:
    """Cut the parameters into buckets of one owner each, in the order in which a backward pass completes them."""
    buckets: list[_Bucket] = []
    open_ones: dict[int | None, list[nn.Parameter]] = {}
    # The backward pass goes through the model from its end to its start.
    for index in reversed(range(len(parameters))):
        owner = owners[index] if owners else None
        members = open_ones.setdefault(owner, [])
        members.append(parameters[index])
        if sum(member.nbytes for member in members) >= bucket_bytes:
            buckets.append(_bucket(owner, open_ones.pop(owner)))
    # `dict` keeps the order, so every rank makes the same list.
    return buckets + [_bucket(owner, members) for owner, members in open_ones.items()]


def _bucket(owner: int | None, parameters: list[nn.Parameter]) -> _Bucket:
    # Rounded up, so that every gradient begins where vectorised kernels can read it.
    sizes = [-(-parameter.numel() // ALIGNMENT) * ALIGNMENT for parameter in parameters]
    flat = torch.zeros(sum(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
    parts = zip(torch.split(flat, sizes), parameters, strict=True)
    views = [part[: parameter.numel()].view_as(parameter) for part, parameter in parts]
    return _Bucket(owner, parameters, flat, views)
