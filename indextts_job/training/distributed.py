"""Several processes that train one run: ranks, reductions, broadcasts, and agreement on a stop.

All ranks run the same loop in lockstep. Every value that controls the loop is a function of the step or is agreed here;
a rank that decided alone would leave the others waiting in a collective. One process needs none: `SingleProcess`.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]  # not in its `__all__`
from torch.distributed.rendezvous import rendezvous

from indextts_job.background import begin
from indextts_job.errors import UnavailableError
from indextts_job.preemption.deadline import StopRequest
from indextts_job.scheduler import RENDEZVOUS_VARIABLE, whole_number
from indextts_job.training.roll_call import RollCall
from indextts_job.waiting import pause

TELL_EVERY_S = 60.0
"""Interval of the messages about ranks that are still missing at the start."""
TIMEOUT = timedelta(minutes=30)
"""Limit for all ranks to join, and for a collective on the host. Long, because the ranks wait there for the last save
of rank 0, and for one whose data is late. The death of a rank is noticed sooner, by its closed connections."""
DEVICE_TIMEOUT = timedelta(minutes=5)
"""Limit for a collective on GPUs. All ranks enter one within a few micro-batches of each other, because they have just
agreed on the host; NCCL does not notice the death of a rank on the same node at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The place of this process among those of the run, from the variables that torchrun sets."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Rank among the processes of this node; the index of the GPU to use."""
    local_world_size: int = 1

    rendezvous: str = "env://"
    """URL at which the ranks meet, as `torch.distributed.init_process_group` takes it."""


def read_world(environment: Mapping[str, str]) -> World:
    """The variables that torchrun sets; one process without them."""
    return World(
        rank=whole_number(environment, "RANK", 0),
        world_size=whole_number(environment, "WORLD_SIZE", 1, least=1),
        local_rank=whole_number(environment, "LOCAL_RANK", 0),
        local_world_size=whole_number(environment, "LOCAL_WORLD_SIZE", 1, least=1),
        rendezvous=environment.get(RENDEZVOUS_VARIABLE, "env://"),
    )


class ProcessGroup(Protocol):
    """Collective operations. All ranks call each method, in the same order; the properties are local."""

    @property
    def rank(self) -> int:
        """Rank of this process; rank 0 saves and reports."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    def begin_sum(self, tensor: Tensor, owner: int | None = None) -> Callable[[], None]:
        """Begin to add up a tensor of the device over all ranks, in place; the returned function waits for the end.

        Args:
            tensor: Not to be touched before the end.
            owner: The only rank that gets the sum; what the others then hold is undefined. None = all get it.
        """

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks, in float64."""

    def any_rank(self, flag: bool) -> bool:  # noqa: FBT001  # the one thing it is about
        """Whether the flag is set on at least one rank."""

    def all_reduce_min(self, value: int) -> int:
        """The smallest value of all ranks."""

    def all_gather(self, value: object) -> list[Any]:
        """The values of all ranks, in the order of the ranks."""

    def broadcast(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
        """Copy each tensor from the rank that owns it to all others, in place."""

    def new_group(self) -> "ProcessGroup":
        """A second group of the same ranks, for a thread that communicates beside the training."""

    def agree_on_stop(self, request: StopRequest | None) -> StopRequest | None:
        """The stop request with the earliest deadline of all ranks; None without one."""


class SingleProcess:
    """The process group of a single process: every value is its own, nothing is sent."""

    rank = 0
    world_size = 1

    def begin_sum(self, tensor: Tensor, owner: int | None = None) -> Callable[[], None]:  # noqa: ARG002
        """See `ProcessGroup`. One rank's values are the sum."""
        return lambda: None

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """See `ProcessGroup`."""
        return list(values)

    def any_rank(self, flag: bool) -> bool:  # noqa: FBT001
        """See `ProcessGroup`."""
        return flag

    def all_reduce_min(self, value: int) -> int:
        """See `ProcessGroup`."""
        return value

    def all_gather(self, value: object) -> list[Any]:
        """See `ProcessGroup`."""
        return [value]

    def broadcast(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
        """See `ProcessGroup`. The only rank owns all of them."""

    def new_group(self) -> "ProcessGroup":
        """See `ProcessGroup`. Nothing is sent, so threads need no group of their own."""
        return self

    def agree_on_stop(self, request: StopRequest | None) -> StopRequest | None:
        """See `ProcessGroup`."""
        return request


class TorchProcessGroup:
    """Several processes, over torch.distributed: gloo for numbers on the host, NCCL for gradients on GPUs."""

    def __init__(
        self,
        world: World,
        roll_call: RollCall,
        *,
        host: dist.ProcessGroup | None = None,
        devices: dist.ProcessGroup | None = None,
    ) -> None:
        """A group of all ranks.

        Args:
            world: Place of this process.
            roll_call: Knows which rank was lost when a collective has failed.
            host: For numbers; None = torch's default group.
            devices: For tensors of the device; None = the same as `host`.
        """
        self.rank = world.rank
        self.world_size = world.world_size
        self._world = world
        self._roll_call = roll_call
        self._host = host
        self._devices = devices or host
        self._reason = ""

    def begin_sum(self, tensor: Tensor, owner: int | None = None) -> Callable[[], None]:
        """See `ProcessGroup`.

        The order of the sum is fixed for a world size and a size of the tensor (I2).
        """
        with self._together():
            if owner is None:
                work = dist.all_reduce(tensor, group=self._devices, async_op=True)
            elif tensor.is_cuda:
                work = dist.reduce(tensor, owner, group=self._devices, async_op=True)
            else:
                return self._gathered(tensor, owner)
        return partial(self._wait, [work])

    def _gathered(self, tensor: Tensor, owner: int) -> Callable[[], None]:
        # gloo's own reduce sends 1.5 to 1.8 times as much on two ranks (`bench/ranks.py`).
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)] if self.rank == owner else None
        work = dist.gather(tensor, parts, dst=owner, group=self._devices, async_op=True)

        def wait() -> None:
            self._wait([work])
            if parts:
                tensor.copy_(parts[0])
                for part in parts[1:]:
                    tensor.add_(part)

        return wait

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
        with self._together():
            dist.all_gather_object(found, value, group=self._host)
        return found

    def broadcast(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
        """See `ProcessGroup`."""
        with self._together():
            # All are begun before the first is waited for: each would wait for the network alone.
            begun = [
                dist.broadcast(tensor.detach(), owner, group=self._devices, async_op=True)
                for tensor, owner in zip(tensors, owners, strict=True)
            ]
        self._wait(begun)

    def new_group(self) -> ProcessGroup:
        """See `ProcessGroup`. All ranks call it at the same place among their other collectives."""
        with self._together():
            # Two threads must not share a group: the order of their collectives would differ from rank to rank. gloo,
            # because the thread moves numbers on the host only.
            host = dist.new_group(backend="gloo", timeout=TIMEOUT)
        return TorchProcessGroup(self._world, self._roll_call, host=host)

    def agree_on_stop(self, request: StopRequest | None) -> StopRequest | None:
        """See `ProcessGroup`. Deadlines are sent as seconds left, because each machine has its own monotonic clock."""
        now_s = time.monotonic()
        left_s = request.deadline_at_s - now_s if request else math.inf
        # The maximum of the negative is the negative of the minimum, so one reduction answers both questions.
        asked, negative_left_s = self._reduced([float(request is not None), -left_s], dist.ReduceOp.MAX)
        if not asked:
            return None
        # Kept, so that the text is sent once. All ranks have it or none, so all of them enter this branch.
        if not self._reason:
            self._reason = next(filter(None, self.all_gather(request.reason if request else "")))
        began_s = request.requested_at_s if request else now_s
        return StopRequest(self._reason, began_s, now_s - negative_left_s)

    def _reduced(self, values: Sequence[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        # float64 keeps counts and sums of losses exact enough to be equal for every cut (I3).
        tensor = torch.tensor(values, dtype=torch.float64)
        with self._together():
            dist.all_reduce(tensor, op=how, group=self._host)
        return [float(value) for value in tensor]

    def _wait(self, begun: Sequence[dist.Work | None]) -> None:
        with self._together():
            for work in begun:
                if work is not None:
                    work.wait(TIMEOUT if self._devices is self._host else DEVICE_TIMEOUT)

    def _together(self) -> AbstractContextManager[None]:
        return _together(self._world, self._roll_call.missing)


@contextmanager
def joined(world: World, device: str, tell: Callable[[str], None] = lambda _message: None) -> Iterator[ProcessGroup]:
    """The process group of this run, once all ranks have joined it.

    Args:
        world: Place of this process.
        device: `cpu` or `cuda`.
        tell: Gets a line, from another thread, for every minute in which a rank is still missing.

    Raises:
        UnavailableError: The ranks did not all join, or one was lost.
    """
    if world.world_size == 1:
        yield SingleProcess()
        return
    with _together(world), _told_while_waiting(world, tell):
        store = _met(world)
        # Counts and stop requests lie on the host, where NCCL cannot reduce them.
        own = PrefixStore("training", store)
        dist.init_process_group("gloo", store=own, rank=world.rank, world_size=world.world_size, timeout=TIMEOUT)
        devices = _devices_group() if device == "cuda" else None
    roll_call = RollCall(PrefixStore("roll call", store), world.rank, world.world_size)
    try:
        yield TorchProcessGroup(world, roll_call, devices=devices)
    except BaseException:
        # Else the end of the group would wait for kernels that wait for a rank that was lost.
        if devices is not None:
            with suppress(RuntimeError):
                dist.distributed_c10d._abort_process_group(devices)
        raise
    finally:
        roll_call.close()
        dist.destroy_process_group()


def _met(world: World) -> Store:
    """The store in which all ranks of the run meet."""
    store: Store
    store, _, _ = next(rendezvous(world.rendezvous, world.rank, world.world_size, timeout=TIMEOUT))
    store.set_timeout(TIMEOUT)
    return store


def _devices_group() -> dist.ProcessGroup:
    """The group for tensors on GPUs."""
    # A failed or late collective is then an exception in `wait`, after NCCL was aborted. By default torch's watchdog
    # ends the whole process by SIGABRT, which says neither 69 nor who was lost.
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    group: dist.ProcessGroup = dist.new_group(backend="nccl", timeout=DEVICE_TIMEOUT)
    return group


@contextmanager
def _told_while_waiting(world: World, tell: Callable[[str], None]) -> Iterator[None]:
    """Report every minute that ranks are missing while the main thread waits for them.

    The ranks that have started hold their GPUs meanwhile, so a user has to see what they wait for.
    """
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

    # torch blocks the main thread without a callback, so the messages need a thread of their own.
    begin(run, "waiting for ranks")
    try:
        yield
    finally:
        met.set()


@contextmanager
def _together(world: World, missing: Callable[[], Sequence[int]] = tuple) -> Iterator[None]:
    """Translate a failed collective: another rank was lost. gloo reports that as a plain RuntimeError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # a RuntimeError too, but one of this rank
    except RuntimeError as error:
        lost = [str(rank) for rank in missing()]
        what = f"lost rank{'s' if len(lost) > 1 else ''} {', '.join(lost)}" if lost else "lost the others"
        raise UnavailableError(
            f"rank {world.rank} of {world.world_size} {what}: {str(error).splitlines()[0]} Look for the first error "
            "among the ranks. The last checkpoint is intact."
        ) from error
