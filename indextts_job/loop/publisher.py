"""What rank 0 does for every save: make a checkpoint of the tensors that all ranks wrote, then tidy the run."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from indextts_job.checkpoint import describe, retention
from indextts_job.checkpoint.fence import Fence
from indextts_job.checkpoint.manifest import CheckpointManifest
from indextts_job.checkpoint.retention import CheckpointName
from indextts_job.checkpoint.store import CheckpointStore, CommitResult, Content, Written
from indextts_job.checkpoint.values import CheckpointValues
from indextts_job.errors import DataError
from indextts_job.resume.shared_objects import Repaired
from indextts_job.training.state import Carried, TrainState

CHECKPOINT_LOG = "checkpoint_log.json"
"""File of the run that lists every checkpoint that ever existed, also removed ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """One checkpoint that is to become visible: everything about it but the tensors that are still being written."""

    name: CheckpointName
    carried: Carried
    """As it was when the save began."""
    values: CheckpointValues


class Publisher:
    """Commits the checkpoints of one attempt."""

    def __init__(  # noqa: PLR0913  # by name
        self,
        store: CheckpointStore,
        fence: Fence,
        *,
        attempt_start: int,
        keep: int,
        unreadable: Sequence[CheckpointName] = (),
        files: Mapping[str, bytes],
        audit: Callable[[], Repaired] = Repaired,
    ) -> None:
        """Nothing is committed yet.

        Args:
            store: The run's checkpoints.
            fence: Refuses a commit when a newer attempt has started.
            attempt_start: Step at which this attempt began; part of every checkpoint's name.
            keep: Newest checkpoints to keep.
            unreadable: Checkpoints that this attempt could not read, and therefore never deletes.
            files: Stored with every checkpoint, by name.
            audit: Compares what all checkpoints share with its hashes, and repairs it.
        """
        self._store = store
        self._fence = fence
        self._attempt_start = attempt_start
        self._keep = keep
        self._unreadable = unreadable
        self._files = files
        self._run_audit = audit
        self._audited = False
        self._warned: set[str] = set()
        self.warnings: list[str] = []
        """For the user, since they were taken last."""

    def publication(self, state: TrainState, tags: tuple[str, ...], values: CheckpointValues) -> Publication:
        """What a save that begins now will publish."""
        name = CheckpointName(state.step, self._fence.attempt, self._attempt_start, tags)
        return Publication(name=name, carried=state.carried, values=values)

    def publish(self, publication: Publication, parts: Sequence[Written]) -> CommitResult:
        """Make a checkpoint visible.

        Args:
            publication: Which.
            parts: What each rank has written.

        Raises:
            SupersededError: A newer attempt has started.
            DataError: It was to be the final one and is committed, but an export of it would fail.
        """
        if retention.FINAL not in publication.name.tags:
            return self._commit(publication.name, publication, parts)
        found = self._run_audit()
        self.warnings += found.told
        if found.whole:
            return self._commit(publication.name, publication, parts)
        # A final checkpoint that cannot be exported is none, so the run must not count as complete.
        tags = tuple(tag for tag in publication.name.tags if tag != retention.FINAL)
        self._commit(replace(publication.name, tags=tags), publication, parts)
        raise DataError(
            f"{found.told[0]} The run is trained to its end, and its last step is committed without the tag "
            "final. Start it again when the files are there."
        )

    def _commit(self, name: CheckpointName, publication: Publication, parts: Sequence[Written]) -> CommitResult:
        content = Content(
            groups=(),
            carried=publication.carried.stored,
            carried_objects=publication.carried.objects,
            files=self._files,
            values=publication.values,
        )
        return self._store.publish(name, content, parts, self._fence.check)

    def tidy(self, committed: CommitResult) -> bool:
        """Do what follows a commit: remove old checkpoints, write side records, audit shared objects.

        None of it is worth ending a training for: what fails is a warning.

        Args:
            committed: The checkpoint that has just become visible.

        Returns:
            Whether checkpoints, and so perhaps objects, were removed.
        """
        removed: list[CheckpointName] = []
        try:
            removed = self._store.retain(self._keep, self._unreadable)
            self._store.storage.write(describe.SUMMARY, json.dumps(describe.summary(self._store), indent=1).encode())
            self._append_to_log(committed.manifest)
            self._audit(committed.manifest)
        # A person or another program may have put anything where side records lie.
        except Exception as error:  # noqa: BLE001
            self.warnings.append(f"old checkpoints were not removed, or {describe.SUMMARY} not written: {error}")
        return bool(removed)

    def _audit(self, manifest: CheckpointManifest) -> None:
        """Look after the objects that all checkpoints share: every byte once per attempt, then only by a listing."""
        if self._audited and not self._store.missing(manifest):
            return
        self._audited = True
        told = self._run_audit().told
        self.warnings += [message for message in told if message not in self._warned]
        self._warned.update(told)

    def _append_to_log(self, manifest: CheckpointManifest) -> None:
        """Rewrite the log with one more entry: object stores cannot append, and a kill never leaves half of it."""
        storage = self._store.storage
        try:
            entries = _log_entries(storage.read(CHECKPOINT_LOG))
        except FileNotFoundError:
            entries = []
        entries.append(describe.log_entry(manifest, storage.url))
        storage.write(CHECKPOINT_LOG, json.dumps(entries, indent=1).encode())


def _log_entries(content: bytes) -> list[object]:
    """Entries of the log; a damaged log begins anew."""
    try:
        entries = json.loads(content.decode())
    except (ValueError, RecursionError):
        return []
    return entries if isinstance(entries, list) else []
