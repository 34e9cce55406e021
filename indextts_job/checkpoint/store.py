"""Checkpoints of one run: commit, list, load verified, remove.

Objects first, then one manifest: a checkpoint is visible exactly when all of it is there. Objects are named by the
hash of their bytes, so what did not change is not written again and an interrupted save costs nothing but space.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from torch import Tensor

from indextts_job.checkpoint import retention
from indextts_job.checkpoint.ahead import ObjectsAhead
from indextts_job.checkpoint.manifest import (
    MANIFESTS,
    SHARED,
    CheckpointManifest,
    StoredObject,
    StoredTensor,
    file_name,
    parse_file_name,
    parse_manifest,
)
from indextts_job.checkpoint.object_layout import Draft, drafts, stored_view
from indextts_job.checkpoint.objects import DamagedCheckpointError, Objects
from indextts_job.checkpoint.retention import CheckpointName
from indextts_job.checkpoint.values import CheckpointValues
from indextts_job.errors import DataError
from indextts_job.hashing import Buffer, integrity_hash
from indextts_job.storage.node_cache import NodeCache
from indextts_job.storage.run_storage import RunStorage


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a checkpoint that is to be written."""

    groups: Sequence[Mapping[str, Tensor]]
    """Tensors by full name, on any device; tensors of different groups never share an object."""
    carried: Mapping[str, StoredTensor]
    """Tensors that lie in the run already."""
    carried_objects: Mapping[str, StoredObject]
    """The objects of `carried`."""
    files: Mapping[str, bytes]
    """Other files, by name with suffix."""
    values: CheckpointValues


@dataclass(frozen=True, slots=True)
class Written:
    """Tensors that were written to the run, and that no checkpoint names yet."""

    objects: Mapping[str, StoredObject]
    tensors: Mapping[str, StoredTensor]
    new_bytes: int
    """Bytes of objects that were not there before."""


@dataclass(frozen=True, slots=True)
class CommitResult:
    """The result of a commit."""

    manifest: CheckpointManifest
    bytes_written: int


class CheckpointStore:
    """Checkpoints in one run's storage."""

    def __init__(self, storage: RunStorage, copies: NodeCache | None = None, ahead: ObjectsAhead | None = None) -> None:
        """The checkpoints of a run.

        Args:
            storage: The run.
            copies: Copies of its objects on this node; None = there are none.
            ahead: Objects that are being read already.
        """
        self.storage = storage
        self._objects = Objects(storage, copies, ahead)
        self._named: dict[CheckpointName, frozenset[str]] = {}
        """Keys of the objects of checkpoints whose manifests this process has read or written. Manifests never change,
        so none is read twice for them."""

    def names(self) -> list[CheckpointName]:
        """All checkpoints, superseded ones included, oldest first."""
        parsed = (parse_file_name(file) for file in self.storage.list(MANIFESTS))
        return sorted(name for name in parsed if name is not None)

    def commit(
        self,
        name: CheckpointName,
        content: Content,
        fence: Callable[[], None],
        go_on: Callable[[], None] = lambda: None,
    ) -> CommitResult:
        """Write a checkpoint.

        Args:
            name: Its step, attempt and tags.
            content: Everything in it.
            fence: Raises when this attempt may not write any more; asked right before the manifest appears.
            go_on: Raises when the save is to be given up; asked before every object.

        Returns:
            The manifest, and how many bytes were new.
        """
        return self.publish(name, content, [self.write(drafts(content.groups), go_on)], fence)

    def write(self, made: Iterable[Draft], go_on: Callable[[], None] = lambda: None) -> Written:
        """Write objects that `publish` will name. Until then no reader sees them.

        Args:
            made: The objects.
            go_on: Raises when the save is to be given up; asked before every object.
        """
        self._objects.begin_save()
        before = self._objects.known().copy()
        objects: dict[str, StoredObject] = {}
        tensors: dict[str, StoredTensor] = {}
        for stored, entries in self._objects.put_all(made, go_on):
            objects[stored.key] = stored
            tensors |= entries
        return Written(objects, tensors, _new_bytes(objects, before))

    def publish(
        self, name: CheckpointName, content: Content, parts: Iterable[Written], fence: Callable[[], None]
    ) -> CommitResult:
        """Make a checkpoint of what one or several processes have written.

        Args:
            name: Its step, attempt and tags.
            content: Everything but its tensor groups.
            parts: Those tensor groups, as each process has written them.
            fence: Raises when this attempt may not write any more; asked right before the manifest appears.
        """
        before = self._objects.known().copy()
        # Carried tensors (base model, tokenizer) keep their objects: they are written once per run.
        objects, tensors = dict(content.carried_objects), dict(content.carried)
        written_bytes = 0
        for part in parts:
            objects |= part.objects
            tensors |= part.tensors
            written_bytes += part.new_bytes
        files = {
            file: self._objects.put(data, SHARED, "." + file.rpartition(".")[2]) for file, data in content.files.items()
        }
        manifest = CheckpointManifest(
            name=name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            objects=objects | {stored.key: stored for stored in files.values()},
            tensors=tensors,
            files={file: stored.key for file, stored in files.items()},
            values=content.values,
        )
        # Serialised before the fence is asked, so that only one write lies between the two.
        document = manifest.to_json()
        # The logs of the committed steps are durable before the manifest: a kill right after the commit would otherwise
        # leave steps that count but have no log.
        self.storage.flush(patient=True)
        # As late as possible: every instant between this check and the write is one in which a newer attempt may start.
        # A commit in that window does no harm, because the newer attempt supersedes it (`retention.current`).
        fence()
        self.storage.write(f"{MANIFESTS}/{file_name(name)}", document)
        self._named[name] = frozenset(manifest.objects)
        of_files = _new_bytes({stored.key: stored for stored in files.values()}, before)
        return CommitResult(manifest, written_bytes + of_files + len(document))

    def keep(self, name: CheckpointName) -> CheckpointName:
        """Tag a checkpoint so that retention leaves it: under its new name first, then no longer under the old one.

        Returns:
            Its new name.

        Raises:
            DataError: It does not exist, is damaged, or a training removes it at this moment.
        """
        if retention.KEEP in name.tags:
            return name
        # The tag is part of the file name, so that retention needs a listing only. A rename is not atomic on object
        # stores, so it is a write followed by a delete: at every instant one of the two names exists.
        kept = replace(name, tags=(*name.tags, retention.KEEP))
        manifest = replace(self.manifest(name), name=kept)
        self.storage.write(f"{MANIFESTS}/{file_name(kept)}", manifest.to_json())
        # `retain` lists the names again before it removes objects, so from here on the new name protects them. Objects
        # that it removed before the new name appeared are gone.
        if gone := self.missing(manifest):
            self.storage.delete(f"{MANIFESTS}/{file_name(kept)}")
            raise DamagedCheckpointError(
                f"{self.storage.url}: {file_name(name)} was being removed by the training at this moment; "
                f"{gone[0].key} is gone. Keep a newer one."
            )
        self.storage.delete(f"{MANIFESTS}/{file_name(name)}")
        return kept

    def newest(self) -> CheckpointManifest | None:
        """The manifest of the checkpoint that the run stands at; None without one.

        A manifest that cannot be read ranks below every one that can.

        Raises:
            DataError: There are manifests, and none of them can be read.
        """
        names = self.names()
        problem: DataError | None = None
        while names:
            # Computed again after each removal: an unreadable manifest must not supersede readable ones by its name's
            # attempt.
            name = retention.current(names)[0]
            try:
                return self.manifest(name)
            except DataError as error:
                # The newest one is reported: it is the one that the user expects to resume from.
                problem = problem or error
                names.remove(name)
        if problem:
            raise problem
        return None

    def missing(self, manifest: CheckpointManifest) -> list[StoredObject]:
        """Objects of a checkpoint that are not there, or not as long as they should be; by listings alone."""
        there = self._objects.all_sizes()
        return [stored for stored in manifest.objects.values() if there.get(stored.key) != stored.size_bytes]

    def missing_shared(self, manifest: CheckpointManifest) -> list[StoredObject]:
        """Those of the missing objects that all checkpoints of the run share.

        Cheap enough after every commit: the folder does not grow with the checkpoints that are kept.
        """
        there = self._objects.sizes(SHARED)
        shared = (stored for stored in manifest.objects.values() if stored.key.startswith(SHARED))
        return [stored for stored in shared if there.get(stored.key) != stored.size_bytes]

    def damaged(self, stored: Iterable[StoredObject]) -> list[StoredObject]:
        """Those objects that are not whole. Objects that this process has written or verified are not read again."""
        every = list(stored)
        there: dict[str, int] = {}
        for folder in {one.key.partition("/")[0] for one in every}:
            there |= self._objects.sizes(folder)
        return [one for one in every if not self._is_whole(one, there)]

    def _is_whole(self, stored: StoredObject, there: Mapping[str, int]) -> bool:
        if there.get(stored.key) != stored.size_bytes:
            self._objects.forget(stored.key)  # this process may have written it before another one removed it
            return False
        if self._objects.known().get(stored.key) == stored.size_bytes:
            return True
        try:
            self._objects.read(stored)
        except DamagedCheckpointError:
            return False
        return True

    def restore(self, stored: StoredObject, data: Buffer) -> bool:
        """Write an object again.

        Args:
            stored: The object as a manifest names it.
            data: Its bytes, made again by the caller; for tensors those of `object_layout.layout_of`.

        Returns:
            False when these are not its bytes by their hash; then nothing is written.
        """
        # The input files may have changed since the run began. Other bytes under this name would be a new damage.
        if integrity_hash(data) != stored.xxh3:
            return False
        self._objects.put(data, stored.key.partition("/")[0], "." + stored.key.rpartition(".")[2])
        return True

    def manifest(self, name: CheckpointName) -> CheckpointManifest:
        """The manifest of one checkpoint.

        Raises:
            DataError: It is gone, damaged or of a newer format.
        """
        file = file_name(name)
        where = f"{self.storage.url}/{MANIFESTS}/{file}"
        try:
            manifest = self._read_manifest(f"{MANIFESTS}/{file}", where)
        except FileNotFoundError as error:
            raise DamagedCheckpointError(f"{where}: no such checkpoint.") from error
        # A copied or renamed manifest would give its checkpoint another step than its tensors have.
        if manifest.name != name:
            raise DamagedCheckpointError(f"{where}: its content says {file_name(manifest.name)}.")
        self._named[name] = frozenset(manifest.objects)
        return manifest

    def _read_manifest(self, key: str, where: str) -> CheckpointManifest:
        try:
            return parse_manifest(self.storage.read(key), where)
        except DataError:
            return parse_manifest(self.storage.read(key), where)  # the network may have altered the first answer

    def load(self, manifest: CheckpointManifest, prefixes: Sequence[str] = ("",)) -> dict[str, Tensor]:
        """Tensors of a checkpoint, every byte verified.

        Args:
            prefixes: Beginnings of the names to load.

        Returns:
            Tensors on the CPU, by full name.

        Raises:
            DamagedCheckpointError: An object is missing, truncated or altered.
        """
        # Whole objects are read even where one tensor is wanted: the hash covers the object.
        wanted = {key: entry for key, entry in manifest.tensors.items() if key.startswith(tuple(prefixes))}
        stored = [manifest.objects[key] for key in sorted({entry.object for entry in wanted.values()})]
        contents = self._objects.load_all(stored)
        return {key: stored_view(contents[entry.object], entry) for key, entry in wanted.items()}

    def read_file(self, manifest: CheckpointManifest, file: str) -> bytes:
        """A file stored with a checkpoint, verified."""
        return self._objects.read(manifest.objects[manifest.files[file]]).tobytes()

    def verify(self, manifest: CheckpointManifest) -> None:
        """Read every object of a checkpoint and compare its hash.

        Raises:
            DamagedCheckpointError: Naming the first object that is not whole.
        """
        self._objects.read_all(manifest.objects.values(), lambda _one, content: len(content))

    def objects_of(self, names: Iterable[CheckpointName]) -> set[str]:
        """Keys of all objects that some checkpoints name.

        Raises:
            DataError: One of their manifests cannot be read.
        """
        keys: set[str] = set()
        for name in names:
            keys |= self._named[name] if name in self._named else self.manifest(name).objects.keys()
        return keys

    def remove(self, name: CheckpointName) -> None:
        """Remove the manifest of a checkpoint, and so the checkpoint; its objects stay."""
        self.storage.delete(f"{MANIFESTS}/{file_name(name)}")
        self._named.pop(name, None)

    def remove_objects(self, keys: Iterable[str]) -> None:
        """Remove objects that no checkpoint names."""
        for key in keys:
            self._objects.forget(key)
            self.storage.delete(key)

    def keep_copies_of(self, names: Collection[str]) -> None:
        """Remove the copies on this node of all objects but these, by their hashes."""
        self._objects.keep_copies_of(names)

    def wait_for_copies(self) -> None:
        """Wait for copies on this node that are still being written, for a while."""
        self._objects.wait_for_copies()

    def restored_from_copies(self, lost: Iterable[StoredObject]) -> list[StoredObject]:
        """Write lost objects again whose copies are on this node; returns those."""
        return self._objects.restored_from_copies(lost)

    def look_again(self) -> None:
        """Forget which objects are there, because another process has removed some."""
        self._objects.look_again()


def _new_bytes(objects: Mapping[str, StoredObject], before: Mapping[str, int]) -> int:
    return sum(stored.size_bytes for key, stored in objects.items() if key not in before)
