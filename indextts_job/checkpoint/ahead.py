"""Begins to read the objects of a run's newest checkpoint before torch is imported. Without torch itself.

What is read here is what a resume most likely needs. If it resumes from another checkpoint, the bytes were read in
vain; nothing else follows from it.
"""

import contextlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from indextts_job.checkpoint import retention
from indextts_job.checkpoint.manifest import (
    MANIFESTS,
    CheckpointManifest,
    StoredObject,
    file_name,
    parse_file_name,
    parse_manifest,
)
from indextts_job.checkpoint.tensor_names import resumed
from indextts_job.hashing import integrity_hash
from indextts_job.storage.node_cache import NodeCache, through
from indextts_job.storage.remote_files import Bytes
from indextts_job.storage.run_storage import RunStorage
from indextts_job.waiting import result

READERS = 6


class ObjectsAhead:
    """Objects that are being read. Each is handed out once, so that its memory can be freed."""

    def __init__(self) -> None:
        self._begun: dict[str, Future[Bytes]] = {}
        self._closed = False
        self.from_storage: set[str] = set()
        """Keys of those that were read from the run's storage and found whole there."""

    def begin(self, storage: RunStorage, copies: NodeCache | None) -> bool:
        """Begin to read the tensors of the newest checkpoint that a resume needs.

        Args:
            storage: The run.
            copies: Copies of its objects on this node.

        Returns:
            Whether there is a checkpoint.

        Raises:
            IndexTTSJobError: The run cannot be listed, or the manifest not be read.
        """
        manifest = _newest(storage)
        if manifest is None:
            return False
        needed = resumed(manifest.tensors)
        wanted = {entry.object for key, entry in manifest.tensors.items() if key.startswith(needed)}
        pool = ThreadPoolExecutor(READERS, thread_name_prefix="ahead")
        for stored in in_turn([manifest.objects[key] for key in sorted(wanted)], copies):
            if not self._closed:
                self._begun[stored.xxh3] = pool.submit(self._read, storage, copies, stored)
        pool.shutdown(wait=False)
        if self._closed:
            self.close()
        return True

    def close(self) -> None:
        """Give up what was not taken: nobody will, and it would be in memory for as long as this is."""
        self._closed = True
        for future in self._begun.values():
            future.cancel()
        self._begun.clear()

    def _read(self, storage: RunStorage, copies: NodeCache | None, stored: StoredObject) -> Bytes:
        def fetch() -> Bytes:
            content = storage.read_large(stored.key, stored.size_bytes)
            # A copy is kept of what is whole only.
            if integrity_hash(content.data) != stored.xxh3:
                raise ValueError(f"{stored.key} is not whole")
            self.from_storage.add(stored.key)
            return content

        return through(copies, stored.xxh3, stored.size_bytes, fetch)

    def take(self, stored: StoredObject) -> Bytes | None:
        """The bytes of an object, which are whole; None if they were not read ahead, or could not be."""
        future = self._begun.pop(stored.xxh3, None)
        if future is None:
            return None
        # `_read` has compared the bytes. What has failed is read again, and fails again with a message.
        with contextlib.suppress(Exception):
            return result(future)
        return None


def in_turn(stored: Sequence[StoredObject], copies: NodeCache | None) -> Sequence[StoredObject]:
    """Objects in the order of this process: each one of a node begins at another, and finds there what others read."""
    if copies is None:
        return stored
    first = len(stored) * copies.share.index // copies.share.count
    return [*stored[first:], *stored[:first]]


def _newest(storage: RunStorage) -> CheckpointManifest | None:
    names = retention.current(name for name in map(parse_file_name, storage.list(MANIFESTS)) if name)
    if not names:
        return None
    key = f"{MANIFESTS}/{file_name(names[0])}"
    return parse_manifest(storage.read(key), f"{storage.url}/{key}")
