"""Several ranks in one process: threads that compute one at a time and meet where they do something together.

What is between two meetings is done by one thread alone, so seeds of torch's one generator do not mix.
"""

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from indextts_job.preemption.deadline import StopRequest
from indextts_job.training.distributed import ProcessGroup, SingleProcess

T = TypeVar("T")
BOUND_S = 60.0


class _NoTurn:
    """For ranks that compute at the same time."""

    def acquire(self) -> None:
        pass

    def release(self) -> None:
        pass


class _Meeting:
    def __init__(self, ranks: int) -> None:
        self.turn: threading.Lock | _NoTurn = threading.Lock()
        self.met = threading.Barrier(ranks, timeout=BOUND_S)
        self.brought: list[Any] = [None] * ranks


class LockstepGroup:
    """One of the ranks."""

    def __init__(self, rank: int, world_size: int, meeting: _Meeting) -> None:
        self.rank = rank
        self.world_size = world_size
        self._meeting = meeting

    def all_gather(self, value: object) -> list[Any]:
        meeting = self._meeting
        meeting.brought[self.rank] = value
        meeting.turn.release()
        try:
            meeting.met.wait()
            found = list(meeting.brought)
            meeting.met.wait()
        finally:
            meeting.turn.acquire()
        return found

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        return [math.fsum(column) for column in zip(*self.all_gather(list(values)), strict=True)]

    def any_rank(self, flag: bool) -> bool:
        return any(self.all_gather(float(flag)))  # a number, as torch takes it

    def all_reduce_min(self, value: int) -> int:
        return int(min(self.all_gather(value)))

    def begin_sum(self, tensor: Tensor, owner: int | None = None) -> Callable[[], None]:
        def wait() -> None:
            total = torch.stack(self.all_gather(tensor.clone())).sum(0)
            # Nobody may use what is undefined.
            tensor.copy_(total if owner in (None, self.rank) else torch.full_like(total, math.nan))

        return wait

    def broadcast(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
        found = self.all_gather([tensor.detach().clone() for tensor in tensors])
        with torch.no_grad():
            for index, (tensor, owner) in enumerate(zip(tensors, owners, strict=True)):
                tensor.copy_(found[owner][index])

    def new_group(self) -> ProcessGroup:
        raise NotImplementedError

    def agree_on_stop(self, request: StopRequest | None) -> StopRequest | None:
        raise NotImplementedError


def on_ranks(world_size: int, work: Callable[[ProcessGroup], T]) -> list[T]:
    """What `work` gives on every rank, in their order; raises what it raised on the first that failed."""
    if world_size == 1:
        return [work(SingleProcess())]
    meeting = _Meeting(world_size)

    def run(rank: int) -> T:
        meeting.turn.acquire()
        try:
            return work(LockstepGroup(rank, world_size, meeting))
        except BaseException:
            meeting.met.abort()
            raise
        finally:
            meeting.turn.release()

    with ThreadPoolExecutor(world_size) as pool:
        futures = [pool.submit(run, rank) for rank in range(world_size)]
    errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None and not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [future.result(timeout=0) for future in futures]


def side_by_side(world_size: int) -> list[LockstepGroup]:
    """Groups for threads that nobody here started, and that may compute at the same time."""
    meeting = _Meeting(world_size)
    meeting.turn = _NoTurn()
    return [LockstepGroup(rank, world_size, meeting) for rank in range(world_size)]
