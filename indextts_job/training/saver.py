"""Saves behind the training: the loop pays for one copy of the changed tensors, a thread writes them.

At most one save is in flight. What the thread reports is handed to the loop when the loop asks, so events keep one
writer and an error surfaces in the training thread.
"""

import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from indextts_job.checkpoint import describe
from indextts_job.checkpoint.fence import Fence
from indextts_job.checkpoint.manifest import file_name
from indextts_job.checkpoint.retention import CheckpointName
from indextts_job.checkpoint.store import CheckpointStore, CommitResult, Content
from indextts_job.errors import AccessRefusedError, DataError, UnavailableError
from indextts_job.report.events import Committed, Emit, Notice
from indextts_job.training.state import BASE, Carried, TrainState

SUMMARY = "summary.json"
"""File of the run that says where it stands; written after every checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaverSettings:
    """What stays the same in every save of an attempt."""

    store: CheckpointStore
    fence: Fence
    attempt_start: int
    keep: int
    unreadable: Sequence[CheckpointName]
    values: Mapping[str, Any]
    files: Mapping[str, bytes]
    emit: Emit


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSave:
    """What became of a save."""

    seconds: float
    """From the call until it was visible, or had failed."""
    error: Exception | None = None


class SaveCancelledError(UnavailableError):
    """A newer state is to be saved instead, and there is time for it."""


class Saver(Protocol):
    """Who saves for the loop."""

    def save(self, state: TrainState, tags: tuple[str, ...]) -> None:
        """Begin to save a state; returns when it may be changed."""

    def finished(self, *, wait_s: float) -> FinishedSave | None:
        """What became of the save in flight; None if there is none, or it is not done within `wait_s`."""

    def cancel(self) -> None:
        """Give up the save in flight."""


class NoSaver:
    """Of the ranks that leave it to rank 0: their state is the same."""

    def save(self, state: TrainState, tags: tuple[str, ...]) -> None:
        """Nothing."""

    def finished(self, *, wait_s: float) -> FinishedSave | None:
        """At once."""
        del wait_s
        return FinishedSave(seconds=0.0)

    def cancel(self) -> None:
        """Nothing."""


class BackgroundSaver:
    """Commits checkpoints of one attempt."""

    def __init__(self, settings: SaverSettings) -> None:
        self.settings = settings
        self._thread: threading.Thread | None = None
        self._cancelled = threading.Event()
        self._result: CommitResult | Exception | None = None
        self._warning = ""
        self._buffers: dict[str, Tensor] = {}
        self._started_s = self._stall_s = self._ended_s = 0.0

    def save(self, state: TrainState, tags: tuple[str, ...]) -> None:
        """Begin to save a state; returns when it is copied, and may be changed.

        Raises:
            RuntimeError: A save is in flight.
        """
        if self._thread is not None:
            raise RuntimeError("one save at a time")
        self._started_s = time.monotonic()
        self._cancelled.clear()
        settings = self.settings
        name = CheckpointName(state.step, settings.fence.attempt, settings.attempt_start, tags)
        content = Content(
            groups=self._staged(state.tensor_groups()),
            carried=state.carried.stored,
            carried_objects=state.carried.objects,
            files=settings.files,
            values={**settings.values, "history": state.history.to_json(), "scaler": state.scaler_values()},
        )
        self._state = state
        self._thread = threading.Thread(target=self._commit, args=(name, content), name="save", daemon=True)
        self._thread.start()
        self._stall_s = time.monotonic() - self._started_s

    def finished(self, *, wait_s: float) -> FinishedSave | None:
        """What became of the save in flight; None if there is none, or it is not done within `wait_s`."""
        if self._thread is None:
            return None
        self._thread.join(wait_s if math.isfinite(wait_s) else None)
        if self._thread.is_alive():
            return None
        self._thread = None
        result, self._result = self._result, None
        seconds = self._ended_s - self._started_s
        if isinstance(result, Exception) or result is None:
            return FinishedSave(seconds=seconds, error=result or RuntimeError("the save ended without a result"))
        manifest = result.manifest
        if self._state.carried.tensors:
            self._state.carried = carried_by(manifest.tensors, manifest.objects)
        step, emit = manifest.name.step, self.settings.emit
        emit(
            Committed(
                step=step,
                name=file_name(manifest.name),
                tags=manifest.name.tags,
                bytes_written=result.bytes_written,
                bytes_total=manifest.size_bytes,
                seconds=seconds,
                stall_seconds=self._stall_s,
            )
        )
        if self._warning:
            emit(Notice(step=step, topic="checkpoint", message=self._warning, warning=True))
        return FinishedSave(seconds=seconds)

    def cancel(self) -> None:
        """Give up the save in flight at its next object; what it has written is kept for the next one."""
        self._cancelled.set()

    def _staged(self, groups: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Copies on the host that training does not touch; the base's tensors never change and need none.

        The buffers are kept for the next save, which is the only other one that can want them: fresh memory costs
        more than the copy. For a GPU they are pinned, and the copies run beside each other.
        """
        staged = []
        on_gpu = False
        for group in groups:
            copies = {}
            for key, tensor in group.items():
                if key.startswith(BASE):
                    copies[key] = tensor
                    continue
                buffer = self._buffers.get(key)
                if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                    buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                    self._buffers[key] = buffer
                copies[key] = buffer.copy_(tensor.detach(), non_blocking=True)
                on_gpu = on_gpu or tensor.is_cuda
            staged.append(copies)
        if on_gpu:
            torch.cuda.synchronize()
        return staged

    def _commit(self, name: CheckpointName, content: Content) -> None:
        store = self.settings.store
        self._warning = ""
        try:
            self._result = store.commit(name, content, self.settings.fence.check, self._go_on)
            self._ended_s = time.monotonic()
        except Exception as error:  # noqa: BLE001  # raised again by the training thread
            self._ended_s = time.monotonic()
            self._result = error
            return
        try:
            store.retain(self.settings.keep, self.settings.unreadable)
            store.storage.write(SUMMARY, json.dumps(describe.summary(store), indent=1).encode())
        except (DataError, UnavailableError, AccessRefusedError) as error:
            self._warning = f"old checkpoints were not removed, or {SUMMARY} not written: {error}"

    def _go_on(self) -> None:
        if self._cancelled.is_set():
            raise SaveCancelledError("the save was given up for a newer state.")


def carried_by(tensors: Mapping[str, Any], objects: Mapping[str, Any]) -> Carried:
    """The tensors that never change, as references into the run's storage."""
    stored = {key: entry for key, entry in tensors.items() if key.startswith(BASE)}
    keys = {entry.object for entry in stored.values()}
    return Carried(stored=stored, objects={key: objects[key] for key in keys})
