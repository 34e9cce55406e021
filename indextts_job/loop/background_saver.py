"""Saves in the background: the loop waits for one copy of the changed tensors, and a thread writes them.

At most one save is in flight. The loop asks for the thread's result, so that one thread writes all events and an error
is raised in the training thread. Each rank writes its part of the tensors, and rank 0 commits a checkpoint of all
parts. A save succeeds on all ranks or fails on all of them.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

from indextts_job.background import begin
from indextts_job.checkpoint.manifest import file_name
from indextts_job.checkpoint.store import CheckpointStore, CommitResult, Written
from indextts_job.checkpoint.values import CheckpointValues, ReferenceLosses
from indextts_job.errors import IndexTTSJobError, UnavailableError
from indextts_job.loop.publisher import Publication, Publisher
from indextts_job.loop.staging import HostCopies, Snapshot
from indextts_job.report.events import Committed, Emit, Notice
from indextts_job.resume.reference import Later
from indextts_job.training.distributed import ProcessGroup
from indextts_job.training.state import TrainState, stored_base
from indextts_job.waiting import Stopped, joined, never, result

if TYPE_CHECKING:
    from concurrent.futures import Future

_T = TypeVar("_T")

TIDY_S = 1.0
"""Time for tidying after a commit when a stop is requested. The next attempt tidies again in any case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSave:
    """The result of a save."""

    seconds: float
    """Duration from the call until the checkpoint was visible, or the save had failed."""
    stall_s: float = 0.0
    """Time that the training waited for it: for the copy, for what was still being tidied, and for its end where the
    next save or the end of the attempt needed it."""
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
        reference: Callable[[Mapping[str, Tensor]], Later] = lambda _copies: _nothing,
    ) -> None:
        """Without a save in flight.

        Args:
            publisher: On rank 0; None on other ranks, which only write their part.
            group: A process group for the thread alone, because the main thread communicates at the same time.
            emit: Gets an event for every commit.
            stopped: Whether a stop is requested. Then the tidying after a commit is not waited for.
            reference: Begins to compute the reference losses of the present weights, of which it gets copies.
        """
        self._store = store
        self._publisher = publisher
        self._group = group
        self._emit = emit
        self._stopped = stopped
        self._reference = reference
        self._copies = HostCopies()
        self._thread: threading.Thread | None = None
        self._tidying: threading.Thread | None = None
        """A thread that has committed and may still be tidying."""
        self._settled = threading.Event()
        """Set when the checkpoint is visible, or the save has failed."""
        self._cancelled = threading.Event()
        self._beginning = threading.Lock()
        """Held until the training goes on. A thread that computed at once would keep the interpreter for 5 ms."""
        self._error: Exception | None = None
        self._committed: CommitResult | None = None
        self._started_s = self._stall_s = self._ended_s = 0.0

    def reserve(self, state: TrainState) -> None:
        """Allocate the memory of later saves; takes seconds on a GPU, so a thread calls it while the training begins.

        Args:
            state: A state of this attempt, whose values do not matter.
        """
        self._copies.reserve(state.tensor_groups(with_moments=True))

    def save(self, state: TrainState, tags: tuple[str, ...], values: CheckpointValues | None) -> None:
        """Start to save a state. Returns when the state is copied and may be changed.

        Args:
            tags: Tags of the checkpoint.
            values: The values that it records besides tensors, without reference losses; None on ranks that do not
                publish.

        Raises:
            RuntimeError: A save is in flight.
        """
        if self._thread is not None:
            raise RuntimeError("one save at a time")
        self._started_s = time.monotonic()
        if self._tidying is not None:
            joined(self._tidying, math.inf)  # it removes objects, which must not happen while this save writes some
        self._cancelled.clear()
        self._settled.clear()
        # All of it is taken before the thread starts: behind this call the training changes the state.
        snapshot = self._copies.of(state.tensor_groups(), state.optimizer)
        publication = self._publisher.publication(state, tags, values) if self._publisher and values else None
        self._error = self._committed = None
        self._state = state
        # A daemon: after the deadline the process leaves even if a write hangs.
        later = self._reference(snapshot.copies) if publication else _nothing
        work = (snapshot, publication, later)
        self._thread = threading.Thread(target=self._save, args=work, name="save", daemon=True)
        with self._beginning:
            self._thread.start()
        self._stall_s = time.monotonic() - self._started_s

    def finished(self, *, wait_s: float) -> FinishedSave | None:
        """The result of the save in flight; None if there is none, or it takes longer than `wait_s`."""
        if self._thread is None:
            return None
        began_s = time.monotonic()
        ended = self._ended(self._thread, wait_s)
        self._stall_s += time.monotonic() - began_s
        if not ended:
            return None
        self._thread = None
        seconds = self._ended_s - self._started_s
        if self._error is None and self._committed:
            self._report(self._committed, seconds)
        return FinishedSave(seconds=seconds, stall_s=self._stall_s, error=self._error)

    def _ended(self, thread: threading.Thread, wait_s: float) -> bool:
        """Wait for the end of the save in flight, or for its commit where the process has to leave."""
        if joined(thread, wait_s, self._may_leave):
            return True
        if not self._may_leave():
            return False
        # The checkpoint is visible and the process has to leave. The next attempt tidies up the rest.
        if not joined(thread, TIDY_S):
            self._tidying = thread
        return True

    def cancel(self) -> None:
        """Give up the save in flight at its next object. The next save finds the objects that it has written."""
        self._cancelled.set()

    def _may_leave(self) -> bool:
        return self._settled.is_set() and bool(self._stopped())

    def _report(self, committed: CommitResult, seconds: float) -> None:
        manifest = committed.manifest
        # From now on the base tensors lie in the run: their memory is freed, and later saves only name them.
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
        # Collected by the thread, reported here: events have one writer.
        while self._publisher and self._publisher.warnings:
            message = self._publisher.warnings.pop(0)
            self._emit(Notice(step=manifest.name.step, topic="checkpoint", message=message, warning=True))

    def _save(self, snapshot: Snapshot, publication: Publication | None, later: Later) -> None:
        """Body of the thread."""
        with self._beginning:
            pass
        try:
            snapshot.complete()
            # Beside the writing, which mostly waits for the storage.
            losses = begin(later, "reference losses")
            # Objects of all ranks are durable before rank 0 writes the manifest that names them.
            parts = self._on_all_ranks(lambda: self._store.write(snapshot.objects, self._raise_if_cancelled))
            self._on_all_ranks(lambda: self._publish(publication, parts, losses))
        except Exception as error:  # noqa: BLE001  # raised again by the training thread
            self._error = error
        # Before the tidying: the duration of a save decides how late one may begin before a deadline.
        self._ended_s = time.monotonic()
        self._settled.set()
        if self._error is None:
            self._tidy()

    def _publish(
        self, publication: Publication | None, parts: Sequence[Written], losses: "Future[ReferenceLosses | None]"
    ) -> None:
        if self._publisher and publication:
            values = replace(publication.values, reference=result(losses, self._raise_if_cancelled))
            self._committed = self._publisher.publish(replace(publication, values=values), parts)

    def _tidy(self) -> None:
        def work() -> tuple[bool, frozenset[str]]:
            if self._publisher is None or self._committed is None:
                return False, frozenset()
            return self._publisher.tidy(self._committed), self._publisher.wanted_copies(self._committed)

        try:
            found = self._on_all_ranks(work)
        except UnavailableError:
            self._store.look_again()  # the other ranks are lost; which objects rank 0 has removed is unknown
            return
        # Tensors that rank 0 has removed have to be written again if they come back. The listing before the next save
        # is not enough: on a shared disk another node may go on listing a file for a while after its removal.
        if self._publisher is None and any(removed for removed, _ in found):
            self._store.look_again()
        # Each node has copies of its own; rank 0 knows what the checkpoint names.
        self._store.keep_copies_of(found[0][1])
        # Only where the process is about to end: a hanging disk must not hold up the save after this one.
        if self._stopped():
            self._store.wait_for_copies()

    def _on_all_ranks(self, work: Callable[[], _T]) -> list[_T]:
        """Call `work` on every rank and return the results of all; if it fails on one rank, it fails on all."""
        own: Exception | None = None
        result: _T | _Failed
        try:
            result = work()
        except Exception as error:  # noqa: BLE001  # the other ranks wait for a result
            own = error
            result = _Failed(_picklable(error))
        results = self._group.all_gather(result)
        # The own error first: it has the traceback.
        if own:
            raise own
        for other in results:
            if isinstance(other, _Failed):
                raise other.error
        return results

    def _raise_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise SaveCancelledError("the save was given up for a newer state.")


def _nothing() -> None:
    """No reference losses."""


def _picklable(error: Exception) -> Exception:
    """The error, or one of ours with its text: errors of libraries may not survive pickling."""
    return error if isinstance(error, IndexTTSJobError) else IndexTTSJobError(f"{type(error).__name__}: {error}")
