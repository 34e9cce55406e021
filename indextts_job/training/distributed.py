"""Several processes that train one run: who they are, what they add up, and what they agree on.

All ranks walk through the same loop in lockstep. Whatever steers it is either a function of the step, or agreed here;
nobody decides alone. A process group of one costs nothing: `SingleProcess`.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from indextts_job.background import begin
from indextts_job.errors import UnavailableError
from indextts_job.preemption.deadline import StopRequest
from indextts_job.scheduler import RENDEZVOUS_VARIABLE, whole_number
from indextts_job.waiting import pause

TELL_EVERY_S = 60.0
TIMEOUT = timedelta(minutes=30)
"""For all ranks to come, and for the last save of rank 0. One that dies is noticed at once, by its connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Which of several processes this is, as torchrun tells."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Among the processes of this node: the GPU to use."""
    local_world_size: int = 1

    rendezvous: str = "env://"
    """Where the ranks meet."""


def read_world(environment: Mapping[str, str]) -> World:
    """One process unless the variables that torchrun sets are there."""
    return World(
        rank=whole_number(environment, "RANK", 0),
        world_size=whole_number(environment, "WORLD_SIZE", 1, least=1),
        local_rank=whole_number(environment, "LOCAL_RANK", 0),
        local_world_size=whole_number(environment, "LOCAL_WORLD_SIZE", 1, least=1),
        rendezvous=environment.get(RENDEZVOUS_VARIABLE, "env://"),
    )


class ProcessGroup(Protocol):
    """What processes do together. Every method but the properties is called by all of them, in the same order."""

    @property
    def rank(self) -> int:
        """Of this process; 0 saves and reports."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum of every gradient over all ranks, in place; a missing one counts as zero."""

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks, in float64."""

    def any_rank(self, flag: bool) -> bool:  # noqa: FBT001  # the one thing it is about
        """Whether it is so on some rank."""

    def all_reduce_min(self, value: int) -> int:
        """The least of all ranks' values."""

    def all_gather(self, value: object) -> list[Any]:
        """All ranks' values, in the order of the ranks."""

    def broadcast(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
        """Give every rank the values that a tensor has on the rank that owns it, in place."""

    def new_group(self) -> "ProcessGroup":
        """The same ranks, for a thread that talks to its like while the training goes on."""

    def agree_on_stop(self, request: StopRequest | None) -> StopRequest | None:
        """The stop request of whoever has to leave first; None if nobody has to."""


class SingleProcess:
    """One process."""

    rank = 0
    world_size = 1

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Nothing to add."""

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Its own."""
        return list(values)

    def any_rank(self, flag: bool) -> bool:  # noqa: FBT001
        """Its own."""
        return flag

    def all_reduce_min(self, value: int) -> int:
        """Its own."""
        return value

    def all_gather(self, value: object) -> list[Any]:
        """Its own."""
        return [value]

    def broadcast(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
        """It has them."""

    def new_group(self) -> "ProcessGroup":
        """Itself."""
        return self

    def agree_on_stop(self, request: StopRequest | None) -> StopRequest | None:
        """Its own."""
        return request


class TorchProcessGroup:
    """Several processes, over torch.distributed: gloo for numbers on the host, NCCL for gradients on GPUs."""

    def __init__(self, world: World, group: dist.ProcessGroup | None = None) -> None:
        self.rank = world.rank
        self.world_size = world.world_size
        self._world = world
        self._group = group
        self._reason = ""

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """See `ProcessGroup`.

        The order of the sum is fixed for a world size, and the result is the same on all ranks (I2).
        """
        with _together(self._world):
            gradients = []
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
            _wait(dist.all_reduce(gradient, group=self._group, async_op=True) for gradient in gradients)

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """See `ProcessGroup`."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def any_rank(self, flag: bool) -> bool:  # noqa: FBT001
        """See `ProcessGroup`."""
        return self._reduced([float(flag)], dist.ReduceOp.MAX)[0] > 0

    def all_reduce_min(self, value: int) -> int:
        """See `ProcessGroup`."""
        return int(self._reduced([float(value)], dist.ReduceOp.MIN)[0])

    def all_gather(self, value: object) -> list[Any]:
        """See `ProcessGroup`."""
        found: list[Any] = [None] * self.world_size
        with _together(self._world):
            dist.all_gather_object(found, value, group=self._group)
        return found

    def broadcast(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
        """See `ProcessGroup`."""
        with _together(self._world):
            _wait(
                dist.broadcast(tensor.detach(), owner, group=self._group, async_op=True)
                for tensor, owner in zip(tensors, owners, strict=True)
            )

    def new_group(self) -> ProcessGroup:
        """See `ProcessGroup`. All ranks call it, in the same order with respect to what else they do together."""
        with _together(self._world):
            return TorchProcessGroup(self._world, dist.new_group(backend="gloo", timeout=TIMEOUT))

    def agree_on_stop(self, request: StopRequest | None) -> StopRequest | None:
        """See `ProcessGroup`. Deadlines travel as seconds that are left: each machine has its own clock."""
        now_s = time.monotonic()
        left_s = request.deadline_at_s - now_s if request else math.inf
        asked, negative_left_s = self._reduced([float(request is not None), -left_s], dist.ReduceOp.MAX)
        if not asked:
            return None
        if not self._reason:  # the same on all ranks, so they all come here
            self._reason = next(filter(None, self.all_gather(request.reason if request else "")))
        began_s = request.requested_at_s if request else now_s
        return StopRequest(self._reason, began_s, now_s - negative_left_s)

    def _reduced(self, values: Sequence[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)
        with _together(self._world):
            dist.all_reduce(tensor, op=how, group=self._group)
        return [float(value) for value in tensor]


def _wait(begun: Iterable[dist.Work | None]) -> None:
    """Wait for all; they are begun before the first is waited for."""
    for work in list(begun):
        if work is not None:
            work.wait(TIMEOUT)


@contextmanager
def joined(world: World, device: str, tell: Callable[[str], None] = lambda _message: None) -> Iterator[ProcessGroup]:
    """Wait for all ranks, and train with them.

    Args:
        world: Of this process.
        device: `cpu` or `cuda`.
        tell: Gets a line, from another thread, every minute in which somebody is still missing.

    Raises:
        UnavailableError: They did not come together, or one was lost.
    """
    if world.world_size == 1:
        yield SingleProcess()
        return
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    with _together(world), _told_while_waiting(world, tell):
        dist.init_process_group(
            backend, init_method=world.rendezvous, rank=world.rank, world_size=world.world_size, timeout=TIMEOUT
        )
    try:
        yield TorchProcessGroup(world)
    finally:
        dist.destroy_process_group()


@contextmanager
def _told_while_waiting(world: World, tell: Callable[[str], None]) -> Iterator[None]:
    """Half a gang holds its GPUs in vain: say so while the main thread waits for the other half."""
    met = threading.Event()

    def run() -> None:
        waited_s = 0.0
        while not pause(TELL_EVERY_S, met.is_set):
            waited_s += TELL_EVERY_S
            others = f"{world.world_size - 1} other processes" if world.world_size > 2 else "the other process"
            tell(
                f"rank {world.rank} has waited {waited_s:.0f} s for {others} at {world.rendezvous}; it gives up after "
                f"{TIMEOUT.total_seconds():.0f} s"
            )

    begin(run, "waiting for ranks")
    try:
        yield
    finally:
        met.set()


@contextmanager
def _together(world: World) -> Iterator[None]:
    """What goes wrong here is the loss of another rank; gloo has no error of its own for that."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UnavailableError(
            f"rank {world.rank} of {world.world_size} lost the others: {str(error).splitlines()[0]} Look for the first "
            "error among the ranks. The last checkpoint is intact."
        ) from error
