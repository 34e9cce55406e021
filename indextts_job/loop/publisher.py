"""Rank 0's part of a save: commits a checkpoint of the tensors that all ranks wrote, then tidies the run."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from indextts_job.checkpoint import describe, retention
from indextts_job.checkpoint.fence import Fence
from indextts_job.checkpoint.manifest import CheckpointManifest
from indextts_job.checkpoint.removal import retain
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
    """A checkpoint that is to be committed: everything but the tensors that are still being written."""

    name: CheckpointName
    carried: Carried
    """The base tensors as they were when the save began."""
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
        """Without a commit so far.

        Args:
            fence: Refuses a commit when a newer attempt has started.
            attempt_start: Step at which this attempt began; part of every checkpoint's name.
            keep: Newest checkpoints to keep.
            unreadable: Checkpoints that this attempt could not read, and therefore never deletes.
            files: Files that every checkpoint holds, by name.
            audit: Verifies the objects that all checkpoints share, and repairs them.
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
        self._described: describe.Described | None = None
        self._logged: list[object] | None = None
        self.warnings: list[str] = []
        """Messages for the user. The saver takes them out and reports them."""

    def publication(self, state: TrainState, tags: tuple[str, ...], values: CheckpointValues) -> Publication:
        """The publication of a save that starts now."""
        name = CheckpointName(state.step, self._fence.attempt, self._attempt_start, tags)
        return Publication(name=name, carried=state.carried, values=values)

    def publish(self, publication: Publication, parts: Sequence[Written]) -> CommitResult:
        """Make a checkpoint visible.

        Args:
            parts: The tensors that each rank has written.

        Raises:
            SupersededError: A newer attempt has started.
            DataError: The checkpoint is committed, but without its tag `final`, because an export of it would fail.
        """
        if retention.FINAL not in publication.name.tags:
            return self._commit(publication.name, publication, parts)
        # Before the commit: a run with a final checkpoint is complete, and nobody would look at its objects again.
        found = self._run_audit()
        self.warnings += found.told
        if found.whole:
            return self._commit(publication.name, publication, parts)
        # A final checkpoint has to be exportable. Without the tag the run does not count as complete, and the trained
        # state is kept all the same.
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
        """Remove old checkpoints, write side records, and audit shared objects, after a commit.

        The training needs none of this, so a failure is a warning.

        Args:
            committed: The checkpoint that has just become visible.

        Returns:
            Whether checkpoints, and so perhaps objects, were removed.
        """
        removed: list[CheckpointName] = []
        try:
            removed = retain(self._store, self._keep, self._unreadable)
            self._write_summary()
            self._append_to_log(committed.manifest)
            self._audit(committed.manifest)
        # Anything may lie at the place of a side record: a folder, or a document of another program.
        except Exception as error:  # noqa: BLE001
            self.warnings.append(f"old checkpoints were not removed, or {describe.SUMMARY} not written: {error}")
        return bool(removed)

    def wanted_copies(self, committed: CommitResult) -> frozenset[str]:
        """Hashes of the objects whose copies stay on the nodes: all of a commit, none of the final one."""
        if retention.FINAL in committed.manifest.name.tags:
            return frozenset()
        return frozenset(stored.xxh3 for stored in committed.manifest.objects.values())

    def _audit(self, manifest: CheckpointManifest) -> None:
        """Verify the objects that all checkpoints share: every byte once per attempt, afterwards by a listing."""
        # Reading the base model after every save would cost as much as the save itself.
        if self._audited and not self._store.missing_shared(manifest):
            return
        self._audited = True
        told = self._run_audit().told
        # Each message once: the audit repeats itself until somebody repairs the cause.
        self.warnings += [message for message in told if message not in self._warned]
        self._warned.update(told)

    def _write_summary(self) -> None:
        if self._described is None:
            self._described = describe.described_in(self._side_record(describe.SUMMARY))
        describe.write_summary(self._store, self._described)

    def _append_to_log(self, manifest: CheckpointManifest) -> None:
        """Write the log again with one more entry: object stores cannot append, and a write is all or nothing."""
        storage = self._store.storage
        if self._logged is None:
            self._logged = _log_entries(self._side_record(CHECKPOINT_LOG))
        self._logged.append(describe.log_entry(manifest, storage.url))
        storage.write(CHECKPOINT_LOG, json.dumps(self._logged, indent=1).encode())

    def _side_record(self, key: str) -> bytes:
        """A side record as the attempt before has left it; read once, because no other process writes it."""
        try:
            return self._store.storage.read(key)
        except FileNotFoundError:
            return b""


def _log_entries(content: bytes) -> list[object]:
    """Entries of the log; none when it is damaged."""
    try:
        entries = json.loads(content.decode())
    except (ValueError, RecursionError):
        return []
    return entries if isinstance(entries, list) else []
