"""Saves behind the training: the loop pays for one copy of the changed tensors, a thread writes them.

At most one save is in flight. The thread's results are handed over when the loop asks for them, so that events have
one writer and an error is raised in the training thread. Each rank writes its share of the tensors, and rank 0 makes a
checkpoint of all shares. A save succeeds on all ranks or fails on all of them.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from indextts_job.checkpoint.manifest import file_name
from indextts_job.checkpoint.store import CheckpointStore, CommitResult, Written
from indextts_job.checkpoint.values import CheckpointValues
from indextts_job.errors import IndexTTSJobError, UnavailableError
from indextts_job.loop.publisher import Publication, Publisher
from indextts_job.loop.staging import HostCopies
from indextts_job.report.events import Committed, Emit, Notice
from indextts_job.training.distributed import ProcessGroup
from indextts_job.training.state import TrainState, stored_base
from indextts_job.waiting import Stopped, joined, never

_T = TypeVar("_T")

TIDY_S = 1.0
"""Time for what follows a commit when a stop is requested; the next attempt does what was left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSave:
    """The result of a save."""

    seconds: float
    """From the call until the checkpoint was visible, or the save had failed."""
    stall_s: float = 0.0
    """Time that training waited for it."""
    error: Exception | None = None


class SaveCancelledError(UnavailableError):
    """The save was given up because a newer state is to be saved, and there is time for it."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """Sent to the other ranks in place of a result."""

    error: Exception


class BackgroundSaver:
    """Commits checkpoints of one attempt."""

    def __init__(
        self,
        store: CheckpointStore,
        publisher: Publisher | None,
        group: ProcessGroup,
        emit: Emit = lambda _event: None,
        stopped: Stopped = never,
    ) -> None:
        """Nothing is in flight.

        Args:
            store: The run's checkpoints.
            publisher: On rank 0; None on other ranks, which only write their share.
            group: A process group for the thread alone: the main thread communicates at the same time.
            emit: Gets an event for every commit.
            stopped: Whether a stop is requested. Then what follows a commit is not waited for.
        """
        self._store = store
        self._publisher = publisher
        self._group = group
        self._emit = emit
        self._stopped = stopped
        self._copies = HostCopies()
        self._thread: threading.Thread | None = None
        self._tidying: threading.Thread | None = None
        """A thread that has committed and was not waited for."""
        self._settled = threading.Event()
        """Set when the checkpoint is visible, or the save has failed."""
        self._cancelled = threading.Event()
        self._error: Exception | None = None
        self._committed: CommitResult | None = None
        self._started_s = self._stall_s = self._ended_s = 0.0

    def save(self, state: TrainState, tags: tuple[str, ...], values: CheckpointValues | None) -> None:
        """Begin to save a state; returns when it is copied and may be changed.

        Args:
            state: To save.
            tags: Tags of the checkpoint.
            values: What it records besides tensors; None on ranks that do not publish.

        Raises:
            RuntimeError: A save is in flight.
        """
        if self._thread is not None:
            raise RuntimeError("one save at a time")
        if self._tidying is not None:
            joined(self._tidying, math.inf)  # it removes objects, which must not happen while others are written
        self._started_s = time.monotonic()
        self._cancelled.clear()
        self._settled.clear()
        groups = self._copies.of(state.tensor_groups())
        publication = self._publisher.publication(state, tags, values) if self._publisher and values else None
        self._error = self._committed = None
        self._state = state
        self._thread = threading.Thread(target=self._save, args=(groups, publication), name="save", daemon=True)
        self._thread.start()
        self._stall_s = time.monotonic() - self._started_s

    def finished(self, *, wait_s: float) -> FinishedSave | None:
        """The result of the save in flight; None if there is none, or it takes longer than `wait_s`."""
        if self._thread is None:
            return None
        if not joined(self._thread, wait_s, self._may_leave):
            if not self._may_leave():
                return None
            # The checkpoint is visible and the process has to leave. The next attempt does what is left to tidy.
            if not joined(self._thread, TIDY_S):
                self._tidying = self._thread
        self._thread = None
        seconds = self._ended_s - self._started_s
        if self._error is None and self._committed:
            self._report(self._committed, seconds)
        return FinishedSave(seconds=seconds, stall_s=self._stall_s, error=self._error)

    def cancel(self) -> None:
        """Give up the save in flight at its next object; objects that it has written serve the next save."""
        self._cancelled.set()

    def _may_leave(self) -> bool:
        return self._settled.is_set() and bool(self._stopped())

    def _report(self, committed: CommitResult, seconds: float) -> None:
        manifest = committed.manifest
        if self._state.carried.tensors:
            self._state.carried = stored_base(manifest)
        self._emit(
            Committed(
                step=manifest.name.step,
                name=file_name(manifest.name),
                tags=manifest.name.tags,
                bytes_written=committed.bytes_written,
                bytes_total=manifest.size_bytes,
                seconds=seconds,
                stall_seconds=self._stall_s,
            )
        )
        while self._publisher and self._publisher.warnings:
            message = self._publisher.warnings.pop(0)
            self._emit(Notice(step=manifest.name.step, topic="checkpoint", message=message, warning=True))

    def _save(self, groups: Sequence[Mapping[str, Tensor]], publication: Publication | None) -> None:
        """The thread."""
        try:
            parts = self._on_all_ranks(lambda: self._store.write(groups, self._raise_if_cancelled))
            self._on_all_ranks(lambda: self._publish(publication, parts))
        except Exception as error:  # noqa: BLE001  # raised again by the training thread
            self._error = error
        self._ended_s = time.monotonic()
        self._settled.set()
        if self._error is None:
            self._tidy()

    def _publish(self, publication: Publication | None, parts: Sequence[Written]) -> None:
        if self._publisher and publication:
            self._committed = self._publisher.publish(publication, parts)

    def _tidy(self) -> None:
        try:
            removed = self._on_all_ranks(
                lambda: bool(self._publisher and self._committed and self._publisher.tidy(self._committed))
            )
        except UnavailableError:
            self._store.look_again()  # the other ranks are gone, and nothing is known of what rank 0 did
            return
        # Tensors that rank 0 has removed have to be written again if they come back.
        if self._publisher is None and any(removed):
            self._store.look_again()

    def _on_all_ranks(self, work: Callable[[], _T]) -> list[_T]:
        """Do something on every rank, and give every rank the results of all; if one rank fails, all of them do."""
        own: Exception | None = None
        result: _T | _Failed
        try:
            result = work()
        except Exception as error:  # noqa: BLE001  # the other ranks wait for a result
            own = error
            result = _Failed(_picklable(error))
        results = self._group.all_gather(result)
        if own:
            raise own
        for other in results:
            if isinstance(other, _Failed):
                raise other.error
        return results

    def _raise_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise SaveCancelledError("the save was given up for a newer state.")


def _picklable(error: Exception) -> Exception:
    """An error that survives the way to another process; those of libraries may not."""
    return error if isinstance(error, IndexTTSJobError) else IndexTTSJobError(f"{type(error).__name__}: {error}")
