"""Micro-batches of a step, and prefetching: the next steps are built while the current one is computed.

What a step holds is decided by `build(step)` alone. The thread runs ahead by a bounded number of steps and hands
them over in order, so it can be late but never wrong.
"""

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

from indextts_job.data.batch import PackedBatch, collate
from indextts_job.data.dataset import Dataset
from indextts_job.data.order import Order
from indextts_job.data.packing import Cut, bins_of_rank, pack
from indextts_job.model.config import GPTConfig

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Calls `build(step)` for consecutive steps in a thread of its own.

    Args:
        build: A function of the step alone.
        steps: The steps that will be asked for, in order.
        depth: How many finished results may wait.
    """

    def __init__(self, build: Callable[[int], T], steps: range, depth: int = 2) -> None:
        self._build = build
        self._steps = steps
        self._ready: queue.Queue[tuple[int, T | BaseException]] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        # Make room, so that a thread waiting to hand over sees that nobody will take it.
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def get(self, step: int) -> T:
        """The result for `step`; waits until it is built.

        Raises:
            Exception: Whatever `build` raised for this step.
            LookupError: Steps were asked for out of order.
        """
        built, result = self._ready.get()
        if built != step:
            raise LookupError(f"step {step} was asked for, {built} comes next")
        if isinstance(result, BaseException):
            raise result
        return result

    def _run(self) -> None:
        for step in self._steps:
            if self._closed.is_set():
                return
            result: T | BaseException
            try:
                result = self._build(step)
            except Exception as error:  # noqa: BLE001  # handed to the thread that asks for this step
                result = error
            self._ready.put((step, result))
            if isinstance(result, BaseException):
                return


def step_batches(dataset: Dataset, order: Order, config: GPTConfig, cut: Cut, step: int) -> list[PackedBatch]:
    """The packed micro-batches of one step on one rank; all ranks have the same number of them.

    Args:
        dataset: Where the samples are.
        order: Which samples the step holds.
        config: The model.
        cut: How this rank cuts a step.
        step: The position.
    """
    indices = [int(index) for index in order.samples_of(step)]
    lengths = [config.sample_tokens(dataset.text_lengths[i], dataset.code_lengths[i]) for i in indices]
    mine = bins_of_rank(pack(lengths, cut.capacity_tokens, cut.world_size), cut.rank, cut.world_size)
    slots = [slot for taken in mine for slot in taken]
    samples = dict(zip(slots, dataset.samples([indices[slot] for slot in slots]), strict=True))
    return [collate([samples[slot] for slot in taken], config) for taken in mine]
