"""Checkpoints of one run: commit, list, load verified, remove.

Objects first, then one manifest: a checkpoint is visible exactly when all of it is there. Objects are named by the
hash of their bytes, so what did not change is not written again and an interrupted save costs nothing but space.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from torch import Tensor

from indextts_job.checkpoint import retention
from indextts_job.checkpoint.manifest import (
    MANIFESTS,
    CheckpointManifest,
    StoredObject,
    StoredTensor,
    file_name,
    is_object_key,
    parse_file_name,
    parse_manifest,
)
from indextts_job.checkpoint.objects import OBJECTS, DamagedCheckpointError, Objects, tensor_in
from indextts_job.checkpoint.retention import CheckpointName
from indextts_job.checkpoint.values import CheckpointValues
from indextts_job.errors import DataError
from indextts_job.storage.run_storage import RunStorage

FURTHER_FOLDERS = ("attempts", "hardware")
"""Other folders of a run in which killed writers may leave temporary files."""
SAFE_AGE_S = 3600.0
"""Objects that no manifest names are removed only when older: they may belong to a save in progress."""


@dataclass(frozen=True, slots=True)
class Content:
    """What goes into a checkpoint."""

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
    """Tensors that are in the run by now, and that no checkpoint names yet."""

    objects: Mapping[str, StoredObject]
    tensors: Mapping[str, StoredTensor]
    new_bytes: int
    """Of objects that were not there before."""


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What a commit did."""

    manifest: CheckpointManifest
    bytes_written: int


class CheckpointStore:
    """Checkpoints in one run's storage."""

    def __init__(self, storage: RunStorage) -> None:
        self.storage = storage
        self._objects = Objects(storage)

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
        return self.publish(name, content, [self.write(content.groups, go_on)], fence)

    def write(self, groups: Sequence[Mapping[str, Tensor]], go_on: Callable[[], None] = lambda: None) -> Written:
        """Write tensors that `publish` will name; until then nobody sees them.

        Args:
            groups: Tensors by full name; tensors of different groups never share an object.
            go_on: Raises when the save is to be given up; asked before every object.
        """
        self._objects.forget_the_lost()
        before = self._objects.known().copy()
        objects: dict[str, StoredObject] = {}
        tensors: dict[str, StoredTensor] = {}
        for stored, entries in self._objects.put_all(groups, go_on):
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
        objects, tensors = dict(content.carried_objects), dict(content.carried)
        written_bytes = 0
        for part in parts:
            objects |= part.objects
            tensors |= part.tensors
            written_bytes += part.new_bytes
        files = {file: self._objects.put(data, "." + file.rpartition(".")[2]) for file, data in content.files.items()}
        manifest = CheckpointManifest(
            name=name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            objects=objects | {stored.key: stored for stored in files.values()},
            tensors=tensors,
            files={file: stored.key for file, stored in files.items()},
            values=content.values,
        )
        document = manifest.to_json()
        # What the committed steps have logged is there before they count: a kill behind the commit leaves no hole.
        self.storage.flush(patient=True)
        fence()
        self.storage.write(f"{MANIFESTS}/{file_name(name)}", document)
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
        kept = replace(name, tags=(*name.tags, retention.KEEP))
        manifest = replace(self.manifest(name), name=kept)
        self.storage.write(f"{MANIFESTS}/{file_name(kept)}", manifest.to_json())
        # A training that removes the checkpoint looks for new names before it removes objects. What it removed before
        # this one appeared is gone.
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
            name = retention.current(names)[0]
            try:
                return self.manifest(name)
            except DataError as error:
                problem = problem or error
                names.remove(name)
        if problem:
            raise problem
        return None

    def missing(self, manifest: CheckpointManifest) -> list[StoredObject]:
        """Objects of a checkpoint that are not there, or not as long as they should be; by a listing alone."""
        there = self._objects.sizes()
        return [stored for stored in manifest.objects.values() if there.get(stored.key) != stored.size_bytes]

    def damaged(self, stored: Iterable[StoredObject]) -> list[StoredObject]:
        """Those objects that are not whole. Objects that this process has written or verified are not read again."""
        there = self._objects.sizes()
        return [one for one in stored if not self._is_whole(one, there)]

    def _is_whole(self, stored: StoredObject, there: Mapping[str, int]) -> bool:
        if there.get(stored.key) != stored.size_bytes:
            self._objects.forget(stored.key)  # this process may have written it, and somebody has removed it
            return False
        if self._objects.known().get(stored.key) == stored.size_bytes:
            return True
        try:
            self._objects.read(stored)
        except DamagedCheckpointError:
            return False
        return True

    def restore(self, stored: StoredObject, data: bytes) -> bool:
        """Write an object again.

        Args:
            stored: What it was.
            data: Its bytes as the caller has made them again; tensors as `objects.serialised` gives them.

        Returns:
            False when these are not its bytes by their hash; then nothing is written.
        """
        if hashlib.sha256(data).hexdigest() != stored.sha256:
            return False
        self._objects.put(data, "." + stored.key.rpartition(".")[2])
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
        if manifest.name != name:
            raise DamagedCheckpointError(f"{where}: its content says {file_name(manifest.name)}.")
        return manifest

    def _read_manifest(self, key: str, where: str) -> CheckpointManifest:
        try:
            return parse_manifest(self.storage.read(key), where)
        except DataError:
            return parse_manifest(self.storage.read(key), where)  # the network may have damaged it on its way

    def load(self, manifest: CheckpointManifest, prefixes: Sequence[str] = ("",)) -> dict[str, Tensor]:
        """Tensors of a checkpoint, every byte verified.

        Args:
            manifest: The checkpoint.
            prefixes: Beginnings of the names to load.

        Returns:
            Tensors on the CPU, by full name.

        Raises:
            DamagedCheckpointError: An object is missing, truncated or altered.
        """
        wanted = {key: entry for key, entry in manifest.tensors.items() if key.startswith(tuple(prefixes))}
        stored = [manifest.objects[key] for key in sorted({entry.object for entry in wanted.values()})]
        contents = dict(self._objects.read_all(stored, lambda one, content: (one.key, content)))
        return {key: tensor_in(contents[entry.object], entry) for key, entry in wanted.items()}

    def read_file(self, manifest: CheckpointManifest, file: str) -> bytes:
        """A file stored with a checkpoint, verified."""
        return self._objects.read(manifest.objects[manifest.files[file]]).tobytes()

    def verify(self, manifest: CheckpointManifest) -> None:
        """Read every object of a checkpoint and compare its hash.

        Raises:
            DamagedCheckpointError: Naming the first object that is not whole.
        """
        self._objects.read_all(manifest.objects.values(), lambda _one, content: len(content))

    def retain(self, keep: int, untouchable: Iterable[CheckpointName] = ()) -> list[CheckpointName]:
        """Remove checkpoints that need not be kept, and the objects that only they name.

        Args:
            keep: Newest checkpoints to keep.
            untouchable: Checkpoints that could not be read; another program may be able to.

        Returns:
            The removed ones.
        """
        names, spared = self.names(), set(untouchable)
        doomed = [name for name in retention.to_delete(names, keep) if name not in spared]
        if not doomed:
            return []
        # Only objects that a removed manifest names can go, so those of a manifest that cannot be read stay.
        doomed_objects = self._objects_of(doomed) - self._objects_of(name for name in names if name not in doomed)
        for name in doomed:
            self.storage.delete(f"{MANIFESTS}/{file_name(name)}")
        # A person may have tagged one of them meanwhile, and another process may have committed.
        doomed_objects -= self._objects_of(name for name in self.names() if name not in names)
        self._remove(doomed_objects)
        return doomed

    def _objects_of(self, names: Iterable[CheckpointName]) -> set[str]:
        """Keys of all objects that some checkpoints name; a manifest that cannot be read names none."""
        keys: set[str] = set()
        for name in names:
            with contextlib.suppress(DataError):
                keys |= self.manifest(name).objects.keys()
        return keys

    def _remove(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._objects.forget(key)
            self.storage.delete(key)

    def collect_orphans(self) -> int:
        """Remove what interrupted saves left: old temporary files, and old objects that no manifest names.

        Files with other names are somebody else's and stay. Without any manifest all objects stay: somebody may have
        moved the manifests away, and puts them back.

        Returns:
            Number of objects removed.

        Raises:
            DataError: A manifest is damaged. Then nothing is removed: what looks like an orphan may be its object.
        """
        for folder in ("", MANIFESTS, OBJECTS, *FURTHER_FOLDERS):
            self.storage.remove_temporary(folder, SAFE_AGE_S)
        # The listing comes first: an object that a save adds behind it is none of ours to judge.
        stored = self.storage.list(OBJECTS)
        names = self.names()
        if not names:
            return 0
        named = {key for name in names for key in self.manifest(name).objects}
        old = (f"{OBJECTS}/{file}" for file, info in stored.items() if info.age_s > SAFE_AGE_S)
        orphans = [key for key in old if key not in named and is_object_key(key)]
        self._remove(orphans)
        return len(orphans)

    def look_again(self) -> None:
        """Forget which objects are there: another process has removed some."""
        self._objects.look_again()


def _new_bytes(objects: Mapping[str, StoredObject], before: Mapping[str, int]) -> int:
    return sum(stored.size_bytes for key, stored in objects.items() if key not in before)
