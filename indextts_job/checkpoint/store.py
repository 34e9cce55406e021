"""Checkpoints of one run: commit, list, load verified, remove.

Objects first, then one manifest: a checkpoint is visible exactly when all of it is there. Objects are named by the
hash of their bytes, so what did not change is not written again and an interrupted save costs nothing but space.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from indextts_job.checkpoint import retention
from indextts_job.checkpoint.manifest import (
    MANIFESTS,
    CheckpointManifest,
    StoredObject,
    StoredTensor,
    file_name,
    parse_file_name,
    parse_manifest,
)
from indextts_job.checkpoint.retention import CheckpointName
from indextts_job.checkpoint.storage import RunStorage
from indextts_job.errors import DataError
from indextts_job.remote_files import Bytes

OBJECTS = "objects"
OBJECT_BYTES = 32 * 2**20
"""Upper bound of one object (a larger tensor is an object of its own): unit of parallel writes and reads."""
WRITERS = 3
"""Objects in the making at a time; with their size, the extra memory of a save (`bench/checkpoint.py`)."""
READERS = 6
SAFE_AGE_S = 3600.0
"""Objects that no manifest names are removed only when older: they may belong to a save in progress."""


class DamagedCheckpointError(DataError):
    """A checkpoint is not whole; the message says which file and what is wrong with it."""


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
    values: Mapping[str, Any]
    """Plain values."""


@dataclass(frozen=True, slots=True)
class Written:
    """Tensors that lie in the run by now, of which no checkpoint tells yet."""

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
        self._known: dict[str, int] | None = None

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
            groups: See `Content.groups`.
            go_on: Raises when the save is to be given up; asked before every object.
        """
        before = self._known_objects().copy()
        objects: dict[str, StoredObject] = {}
        tensors: dict[str, StoredTensor] = {}
        for stored, entries in self._put_all(groups, go_on):
            objects[stored.key] = stored
            tensors |= entries
        return Written(objects, tensors, _new_bytes(objects, before))

    def publish(
        self, name: CheckpointName, content: Content, parts: Iterable[Written], fence: Callable[[], None]
    ) -> CommitResult:
        """Make a checkpoint of what one or several processes have written.

        Args:
            name: Its step, attempt and tags.
            content: All of it but the groups, which `parts` have become.
            parts: What was written.
            fence: See `commit`.
        """
        before = self._known_objects().copy()
        objects, tensors = dict(content.carried_objects), dict(content.carried)
        written_bytes = 0
        for part in parts:
            objects |= part.objects
            tensors |= part.tensors
            written_bytes += part.new_bytes
        files = {file: self._put(data, "." + file.rpartition(".")[2]) for file, data in content.files.items()}
        manifest = CheckpointManifest(
            name=name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            objects=objects | {stored.key: stored for stored in files.values()},
            tensors=tensors,
            files={file: stored.key for file, stored in files.items()},
            values=content.values,
        )
        document = manifest.to_json()
        fence()
        self.storage.write(f"{MANIFESTS}/{file_name(name)}", document)
        of_files = _new_bytes({stored.key: stored for stored in files.values()}, before)
        return CommitResult(manifest, written_bytes + of_files + len(document))

    def keep(self, name: CheckpointName) -> CheckpointName:
        """Tag a checkpoint so that retention leaves it: under its new name first, then no longer under the old one.

        Returns:
            Its new name.

        Raises:
            DataError: It is gone or damaged.
        """
        if retention.KEEP in name.tags:
            return name
        kept = replace(name, tags=(*name.tags, retention.KEEP))
        document = replace(self.manifest(name), name=kept).to_json()
        self.storage.write(f"{MANIFESTS}/{file_name(kept)}", document)
        self.storage.delete(f"{MANIFESTS}/{file_name(name)}")
        return kept

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
            return parse_manifest(self.storage.read(key), where)  # as with objects: the line may be to blame

    def load(self, manifest: CheckpointManifest, prefixes: Sequence[str] = ("",)) -> dict[str, Tensor]:
        """Tensors of a checkpoint, every byte verified.

        Args:
            manifest: The checkpoint.
            prefixes: Of the names to load.

        Returns:
            Tensors on the CPU, by full name.

        Raises:
            DamagedCheckpointError: An object is missing, truncated or altered.
        """
        wanted = {key: entry for key, entry in manifest.tensors.items() if key.startswith(tuple(prefixes))}
        keys = sorted({entry.object for entry in wanted.values()})
        with ThreadPoolExecutor(max_workers=READERS) as pool:
            contents = dict(zip(keys, pool.map(lambda key: self._read_object(manifest, key), keys), strict=True))
        return {key: _tensor(contents[entry.object], entry) for key, entry in wanted.items()}

    def read_file(self, manifest: CheckpointManifest, file: str) -> bytes:
        """A file stored with a checkpoint, verified."""
        return self._read_object(manifest, manifest.files[file]).tobytes()

    def verify(self, manifest: CheckpointManifest) -> None:
        """Read every object of a checkpoint and compare its hash.

        Raises:
            DamagedCheckpointError: Naming the first object that is not whole.
        """
        with ThreadPoolExecutor(max_workers=READERS) as pool:
            for _ in pool.map(lambda key: len(self._read_object(manifest, key)), manifest.objects):
                pass

    def retain(self, keep: int, untouchable: Iterable[CheckpointName] = ()) -> list[CheckpointName]:
        """Remove checkpoints that need not be kept, and the objects that only they name.

        Args:
            keep: Newest checkpoints to keep.
            untouchable: Checkpoints that could not be read: never deleted by who could not read them.

        Returns:
            The removed ones.
        """
        names = self.names()
        spared = set(untouchable)
        doomed = [name for name in retention.to_delete(names, keep) if name not in spared]
        if not doomed:
            return []
        # Only objects that a removed manifest names can go, so those of a manifest that is damaged itself stay.
        kept_objects = {key for name in names if name not in doomed for key in self._objects_if_readable(name)}
        doomed_objects = {key for name in doomed for key in self._objects_if_readable(name)} - kept_objects
        for name in doomed:
            self.storage.delete(f"{MANIFESTS}/{file_name(name)}")
        for key in doomed_objects:
            self._forget(key)
            self.storage.delete(key)
        return doomed

    def collect_orphans(self) -> int:
        """Remove what interrupted saves left: old temporary files, and old objects that no manifest names.

        Returns:
            Number of objects removed.

        Raises:
            DataError: A manifest is damaged. Then nothing is removed: what looks like an orphan may be its object.
        """
        for folder in (MANIFESTS, OBJECTS):
            self.storage.remove_temporary(folder, SAFE_AGE_S)
        stored = self.storage.list(OBJECTS)
        named = {key for name in self.names() for key in self.manifest(name).objects}
        orphans = [
            f"{OBJECTS}/{file}"
            for file, info in stored.items()
            if f"{OBJECTS}/{file}" not in named and info.age_s > SAFE_AGE_S
        ]
        for key in orphans:
            self._forget(key)
            self.storage.delete(key)
        return len(orphans)

    def look_again(self) -> None:
        """Forget which objects are there: another process has removed some."""
        self._known = None

    def _objects_if_readable(self, name: CheckpointName) -> Iterable[str]:
        try:
            return self.manifest(name).objects.keys()
        except DataError:
            return ()

    def _known_objects(self) -> dict[str, int]:
        """Sizes of the objects that are there; one of another size than its name promises is written again."""
        if self._known is None:
            stored = self.storage.list(OBJECTS)
            self._known = {f"{OBJECTS}/{file}": info.size_bytes for file, info in stored.items()}
        return self._known

    def _forget(self, key: str) -> None:
        # An object that was removed or found damaged has to be written again if its content comes back.
        self._known_objects().pop(key, None)

    def _put(self, data: bytes, suffix: str) -> StoredObject:
        digest = hashlib.sha256(data).hexdigest()
        stored = StoredObject(f"{OBJECTS}/{digest}{suffix}", digest, len(data))
        if self._known_objects().get(stored.key) != stored.size_bytes:
            self.storage.write(stored.key, data)
            self._known_objects()[stored.key] = stored.size_bytes
        return stored

    def _put_all(
        self, groups: Iterable[Mapping[str, Tensor]], go_on: Callable[[], None]
    ) -> Iterator[tuple[StoredObject, dict[str, StoredTensor]]]:
        """Write all tensors, a few objects at a time: that bounds the memory, and hashing hides behind writing."""
        with ThreadPoolExecutor(max_workers=WRITERS) as pool:
            pending: deque[Future[tuple[StoredObject, dict[str, StoredTensor]]]] = deque()
            for part in (part for group in groups for part in _parts(group)):
                if len(pending) == WRITERS:
                    yield pending.popleft().result()
                go_on()
                pending.append(pool.submit(self._put_tensors, part))
            while pending:
                yield pending.popleft().result()

    def _put_tensors(self, tensors: Mapping[str, Tensor]) -> tuple[StoredObject, dict[str, StoredTensor]]:
        data = safetensors.torch.save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
        stored = self._put(data, ".safetensors")
        # The container: 8 bytes of header length, a JSON header with offsets behind it, then the bytes.
        header_size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + header_size])
        entries = {}
        for key in tensors:
            start, stop = (8 + header_size + offset for offset in header[key]["data_offsets"])
            entries[key] = StoredTensor(header[key]["dtype"], tuple(header[key]["shape"]), stored.key, start, stop)
        return stored, entries

    def _read_object(self, manifest: CheckpointManifest, key: str) -> Bytes:
        """The bytes of an object, verified; read twice before it counts as damaged, for the line may be to blame."""
        try:
            return self._read_once(manifest, key)
        except DamagedCheckpointError:
            return self._read_once(manifest, key)

    def _read_once(self, manifest: CheckpointManifest, key: str) -> Bytes:
        stored = manifest.objects[key]
        where = f"{self.storage.url}/{key}"
        try:
            data = self.storage.read_large(key, stored.size_bytes)
        except FileNotFoundError as error:
            raise DamagedCheckpointError(f"{where}: missing.") from error
        if len(data) != stored.size_bytes:
            self._forget(key)
            raise DamagedCheckpointError(f"{where}: {len(data)} bytes, expected {stored.size_bytes}.")
        if hashlib.sha256(data.data).hexdigest() != stored.sha256:
            self._forget(key)
            raise DamagedCheckpointError(f"{where}: its bytes do not have the hash {stored.sha256[:12]}….")
        return data


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}


def _tensor(content: Bytes, entry: StoredTensor) -> Tensor:
    """A tensor in the memory that its object was read into."""
    return torch.from_numpy(content[entry.start : entry.stop]).view(_DTYPES[entry.dtype]).reshape(entry.shape)


def _new_bytes(objects: Mapping[str, StoredObject], before: Mapping[str, int]) -> int:
    return sum(stored.size_bytes for key, stored in objects.items() if key not in before)


def _parts(tensors: Mapping[str, Tensor]) -> Iterable[dict[str, Tensor]]:
    """Cut a group into objects of bounded size, by name, so that equal groups give equal objects."""
    part: dict[str, Tensor] = {}
    size = 0
    for key in sorted(tensors):
        tensor_bytes = tensors[key].numel() * tensors[key].element_size()
        if part and size + tensor_bytes > OBJECT_BYTES:
            yield part
            part, size = {}, 0
        part[key] = tensors[key]
        size += tensor_bytes
    if part:
        yield part
