"""Build the micro-batches of a step, and prefetch: the next steps are built while the current one is computed.

The content of a step is a function of the step alone. The thread builds a bounded number of steps ahead and hands them
over in order, so its timing has no influence on what is trained.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

from indextts_job.data.dataset import Dataset
from indextts_job.data.order import SampleOrder
from indextts_job.data.packing import Cut, bins_of_rank, pack
from indextts_job.model.batch import Allocate, PackedBatch, collate, pageable
from indextts_job.model.config import GPTConfig
from indextts_job.waiting import Stopped, hand_over, never, take

T = TypeVar("T")
LONG_WAIT_S = 60.0
"""A longer wait for data is reported: a read hangs, or the storage is too slow."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """The error that `build` raised."""

    error: Exception


class Prefetcher(Generic[T]):
    """Calls `build(step)` for consecutive steps in a thread of its own.

    Args:
        build: Function of the step alone.
        steps: The steps that will be requested, in order.
        depth: Number of finished results that may wait.
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
        # Nothing waits for the thread: it may be in a read that hangs, and it ends with the process.
        self._closed.set()

    def restart(self, step: int) -> None:
        """Discard what is built and build again, because `build` gives something else now.

        Args:
            step: The step that is requested next.
        """
        # A new event and a new queue: the old thread may still finish a step, and must not deliver it.
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
            step: The next step in order.
            stopped: Ends the wait when it returns something true.
            tell: Called once when the wait is longer than `LONG_WAIT_S`.

        Returns:
            The result; None when `stopped` ended the wait.

        Raises:
            Exception: The error that `build` raised for this step.
            LookupError: The steps were not requested in order.
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
            except Exception as error:  # noqa: BLE001  # raised again in the thread that requests this step
                result = _Failed(error)
            if not hand_over(ready, (step, result), closed.is_set) or isinstance(result, _Failed):
                return


def step_batches(  # a function of all of them and of nothing else
    dataset: Dataset, order: SampleOrder, config: GPTConfig, cut: Cut, step: int, allocate: Allocate = pageable
) -> list[PackedBatch]:
    """The packed micro-batches of one step on one rank; all ranks have the same number of them.

    Args:
        dataset: The samples.
        order: The order in which the run uses them.
        config: The model's sizes.
        cut: Capacity of a micro-batch, and this rank's share.
        step: The optimizer step, from 0.
        allocate: Gives the memory of the micro-batches.
    """
    places = order.samples_of(step)
    indices, lengths = places.tolist(), dataset.tokens(config, places)
    mine = bins_of_rank(pack(lengths, cut.capacity_tokens, cut.world_size), cut.rank, cut.world_size)
    # Only the samples of this rank are read, and all of them at once.
    slots = [slot for taken in mine for slot in taken]
    samples = dict(zip(slots, dataset.samples([indices[slot] for slot in slots]), strict=True))
    return [collate([samples[slot] for slot in taken], config, allocate) for taken in mine]
