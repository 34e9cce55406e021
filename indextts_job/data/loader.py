"""Micro-batches of a step, and prefetching: the next steps are built while the current one is computed.

What a step holds is decided by `build(step)` alone. The thread runs ahead by a bounded number of steps and hands
them over in order, so it can be late but never wrong.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

from indextts_job.data.dataset import Dataset
from indextts_job.data.order import Order
from indextts_job.data.packing import Cut, bins_of_rank, pack
from indextts_job.model.batch import PackedBatch, collate
from indextts_job.model.config import GPTConfig
from indextts_job.waiting import Stopped, hand_over, never, take

T = TypeVar("T")
LONG_WAIT_S = 60.0
"""A wait for data that is worth a line: then a read hangs, or the storage cannot keep up."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """`build` raised."""

    error: Exception


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
        self._depth = depth
        self._ready: queue.Queue[tuple[int, T | _Failed]] = queue.Queue(depth)
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        self.restart(self._steps.start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The thread is not waited for: it may be inside a read that hangs, and it ends with the process.
        self._closed.set()

    def restart(self, step: int) -> None:
        """Build again from a step on: what `build` does has changed.

        Args:
            step: The one that is asked for next.
        """
        self._closed.set()
        self._closed = threading.Event()
        self._ready = queue.Queue(self._depth)
        steps = range(step, self._steps.stop)
        thread = threading.Thread(
            target=self._run, args=(steps, self._ready, self._closed), name="prefetch", daemon=True
        )
        thread.start()

    def get(self, step: int, stopped: Stopped = never, tell: Callable[[], None] | None = None) -> T | None:
        """The result for `step`; waits until it is built.

        Args:
            step: The next one in order.
            stopped: Ends the wait.
            tell: Called once when the wait becomes long.

        Returns:
            None when the wait was ended.

        Raises:
            Exception: Whatever `build` raised for this step.
            LookupError: Steps were asked for out of order.
        """
        taken = take(self._ready, stopped, LONG_WAIT_S, tell)
        if taken is None:
            return None
        built, result = taken
        if built != step:
            raise LookupError(f"step {step} was asked for, {built} comes next")
        if isinstance(result, _Failed):
            raise result.error
        return result

    def _run(self, steps: range, ready: "queue.Queue[tuple[int, T | _Failed]]", closed: threading.Event) -> None:
        for step in steps:
            result: T | _Failed
            try:
                result = self._build(step)
            except Exception as error:  # noqa: BLE001  # handed to the thread that asks for this step
                result = _Failed(error)
            if not hand_over(ready, (step, result), closed.is_set) or isinstance(result, _Failed):
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
