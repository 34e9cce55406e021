"""Saves behind the training: the loop pays for one copy of the changed tensors, a thread writes them.

At most one save is in flight. What the thread reports is handed to the loop when the loop asks, so events keep one
writer and an error surfaces in the training thread. Of several ranks each writes its share of the tensors, and rank 0
makes a checkpoint of them; a save succeeds or fails on all of them alike.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from indextts_job.checkpoint import describe, retention
from indextts_job.checkpoint.fence import Fence
from indextts_job.checkpoint.manifest import CheckpointManifest, file_name
from indextts_job.checkpoint.retention import CheckpointName
from indextts_job.checkpoint.store import CheckpointStore, CommitResult, Content, Written
from indextts_job.errors import DataError, IndexTTSJobError, UnavailableError
from indextts_job.report.events import Committed, Emit, Notice
from indextts_job.resume.shared_objects import Repaired
from indextts_job.storage.run_storage import RunStorage
from indextts_job.training.distributed import ProcessGroup
from indextts_job.training.state import BASE, Carried, TrainState
from indextts_job.waiting import Stopped, joined, never

_T = TypeVar("_T")

TIDY_S = 1.0
"""What follows a commit may take so long when a stop is requested."""
CHECKPOINT_LOG = "checkpoint_log.json"
"""File of the run that tells of every checkpoint there ever was, also of those that are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaverSettings:
    """What stays the same in every save of an attempt; known to rank 0, which publishes."""

    fence: Fence
    attempt_start: int
    keep: int
    unreadable: Sequence[CheckpointName]
    values: Mapping[str, Any]
    files: Mapping[str, bytes]
    emit: Emit
    audit: Callable[[], Repaired] = Repaired
    """Compares what every checkpoint shares with its hashes, and mends it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSave:
    """What became of a save."""

    seconds: float
    """From the call until it was visible, or had failed."""
    stall_s: float = 0.0
    """What training waited for it."""
    error: Exception | None = None


class SaveCancelledError(UnavailableError):
    """A newer state is to be saved instead, and there is time for it."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """What another rank is told of an error."""

    error: Exception


class BackgroundSaver:
    """Commits checkpoints of one attempt."""

    def __init__(
        self, store: CheckpointStore, settings: SaverSettings | None, group: ProcessGroup, stopped: Stopped = never
    ) -> None:
        """A saver of one rank.

        Args:
            store: The run's checkpoints.
            settings: For rank 0, which publishes; None for the others, which only write their share.
            group: For the thread alone.
            stopped: Whether a stop is requested. Then what follows a commit is not waited for.
        """
        self._stopped = stopped
        self._settled = threading.Event()
        self._audited = False
        self._told: set[str] = set()
        self._store = store
        self._settings = settings
        self._group = group
        self._thread: threading.Thread | None = None
        self._tidying: threading.Thread | None = None
        """A thread that has committed and was not waited for."""
        self._cancelled = threading.Event()
        self._error: Exception | None = None
        self._committed: CommitResult | None = None
        self._warnings: list[str] = []
        self._buffers: dict[str, Tensor] = {}
        self._started_s = self._stall_s = self._ended_s = 0.0

    @property
    def storage(self) -> RunStorage:
        """The run."""
        return self._store.storage

    def save(self, state: TrainState, tags: tuple[str, ...], further: Mapping[str, Any] | None = None) -> None:
        """Begin to save a state; returns when it is copied, and may be changed.

        Args:
            state: To save.
            tags: Of the checkpoint.
            further: Values of this save, beside those of every save.

        Raises:
            RuntimeError: A save is in flight.
        """
        if self._thread is not None:
            raise RuntimeError("one save at a time")
        if self._tidying is not None:
            joined(self._tidying, math.inf)  # it removes objects: not while others are written
        self._started_s = time.monotonic()
        self._cancelled.clear()
        self._settled.clear()
        groups = self._staged(state.tensor_groups())
        publish = self._publication(state, tags, further or {}) if self._settings else None
        self._error = self._committed = None
        self._state = state
        self._thread = threading.Thread(target=self._save, args=(groups, publish), name="save", daemon=True)
        self._thread.start()
        self._stall_s = time.monotonic() - self._started_s

    def finished(self, *, wait_s: float) -> FinishedSave | None:
        """What became of the save in flight; None if there is none, or it is not done within `wait_s`."""
        if self._thread is None:
            return None
        if not joined(self._thread, wait_s, lambda: self._settled.is_set() and self._stopped()):
            if not (self._settled.is_set() and self._stopped()):
                return None
            # Committed, and the process is to leave: what is left to do can be done by the next attempt.
            if not joined(self._thread, TIDY_S):
                self._tidying = self._thread
        self._thread = None
        seconds = self._ended_s - self._started_s
        if self._error is None and self._committed and self._settings:
            self._report(self._committed, seconds, self._settings.emit)
        return FinishedSave(seconds=seconds, stall_s=self._stall_s, error=self._error)

    def _report(self, committed: CommitResult, seconds: float, emit: Emit) -> None:
        manifest = committed.manifest
        if self._state.carried.tensors:
            self._state.carried = carried_by(manifest.tensors, manifest.objects)
        emit(
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
        while self._warnings:
            message = self._warnings.pop(0)
            emit(Notice(step=manifest.name.step, topic="checkpoint", message=message, warning=True))

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

    def _publication(
        self, state: TrainState, tags: tuple[str, ...], further: Mapping[str, Any]
    ) -> Callable[[list[Written]], None]:
        """How rank 0 makes a checkpoint of what was written; the values are those of now."""
        settings, store = self._settings, self._store
        assert settings is not None  # noqa: S101  # rank 0 only
        name = CheckpointName(state.step, settings.fence.attempt, settings.attempt_start, tags)
        content = Content(
            groups=(),
            carried=state.carried.stored,
            carried_objects=state.carried.objects,
            files=settings.files,
            values={
                **settings.values,
                "history": state.history.to_json(),
                "scaler": state.scaler_values(),
                **further,
            },
        )

        def publish(parts: list[Written]) -> None:
            if retention.FINAL not in tags:
                self._committed = store.publish(name, content, parts, settings.fence.check)
                return
            found = settings.audit()
            self._warnings += found.told
            # A final checkpoint that cannot be exported is none.
            fitting = name if found.whole else replace(name, tags=tuple(t for t in tags if t != retention.FINAL))
            self._committed = store.publish(fitting, content, parts, settings.fence.check)
            if not found.whole:
                raise DataError(
                    f"{found.told[0]} The run is trained to its end, and its last step is committed without the tag "
                    "final. Start it again when the files are there."
                )

        return publish

    def _tidy(self) -> bool:
        """What follows a commit, and never ends a training; whether objects were removed."""
        settings, store = self._settings, self._store
        assert settings is not None  # noqa: S101  # rank 0 only
        assert self._committed is not None  # noqa: S101  # called behind the commit
        removed: list[CheckpointName] = []
        try:
            removed = store.retain(settings.keep, settings.unreadable)
            store.storage.write(describe.SUMMARY, json.dumps(describe.summary(store), indent=1).encode())
            self._log(self._committed)
            self._audit(self._committed.manifest)
        # Side records may hold anything, also what a person or another program has put there.
        except Exception as error:  # noqa: BLE001
            self._warnings.append(f"old checkpoints were not removed, or {describe.SUMMARY} not written: {error}")
        return bool(removed)

    def _audit(self, committed: CheckpointManifest) -> None:
        """Is what all checkpoints share still what it was? Every byte once in an attempt, then by a listing."""
        if self._settings and (not self._audited or self._store.missing(committed)):
            self._audited = True
            told = self._settings.audit().told
            self._warnings += [message for message in told if message not in self._told]
            self._told.update(told)

    def _log(self, committed: CommitResult) -> None:
        """Add a line to the log of all checkpoints, which is whole after any kill."""
        storage = self._store.storage
        try:
            lines = json.loads(storage.read(CHECKPOINT_LOG).decode())
        except (FileNotFoundError, ValueError, RecursionError):
            lines = []
        if not isinstance(lines, list):
            lines = []
        lines.append(describe.log_entry(committed.manifest, storage.url))
        storage.write(CHECKPOINT_LOG, json.dumps(lines, indent=1).encode())

    def _save(self, groups: Sequence[Mapping[str, Tensor]], publish: Callable[[list[Written]], None] | None) -> None:
        try:
            parts = self._together(lambda: self._store.write(groups, self._go_on))
            self._together(lambda: publish(parts) if publish else None)
        except Exception as error:  # noqa: BLE001  # raised again by the training thread
            self._error = error
        self._ended_s = time.monotonic()
        self._settled.set()
        if self._error:
            return
        try:
            removed = self._together(lambda: self._tidy() if publish else False)
            # What rank 0 has removed has to be written again if it comes back.
            if publish is None and any(removed):
                self._store.look_again()
        except UnavailableError:
            self._store.look_again()  # the others are gone; nothing is known of what rank 0 did

    def _together(self, work: Callable[[], _T]) -> list[_T]:
        """What all ranks' work gives; fails on all of them if it fails on one."""
        own: Exception | None = None
        result: _T | _Failed
        try:
            result = work()
        except Exception as error:  # noqa: BLE001  # the others hear of it first
            own = error
            known = isinstance(error, IndexTTSJobError)
            result = _Failed(error if known else IndexTTSJobError(f"{type(error).__name__}: {error}"))
        found = self._group.all_gather(result)
        if own:
            raise own
        for value in found:
            if isinstance(value, _Failed):
                raise value.error
        return found

    def _go_on(self) -> None:
        if self._cancelled.is_set():
            raise SaveCancelledError("the save was given up for a newer state.")


def carried_by(tensors: Mapping[str, Any], objects: Mapping[str, Any]) -> Carried:
    """The tensors that never change, as references into the run's storage."""
    stored = {key: entry for key, entry in tensors.items() if key.startswith(BASE)}
    keys = {entry.object for entry in stored.values()}
    return Carried(stored=stored, objects={key: objects[key] for key in keys})
