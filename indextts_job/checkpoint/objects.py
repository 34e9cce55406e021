"""Objects of a run: bytes under the name of their hash, tensors in some of them.

What is there already is not written again, and what is read is compared with its hash.
"""

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from indextts_job.checkpoint.ahead import READERS, ObjectsAhead, in_turn
from indextts_job.checkpoint.manifest import OBJECTS, SHARED, StoredObject, StoredTensor
from indextts_job.checkpoint.object_layout import Draft
from indextts_job.checkpoint.tensor_names import BASE
from indextts_job.errors import DataError
from indextts_job.hashing import Buffer, integrity_hash
from indextts_job.storage.node_cache import Copier, NodeCache, through
from indextts_job.storage.remote_files import Bytes
from indextts_job.storage.run_storage import RunStorage
from indextts_job.waiting import result

_T = TypeVar("_T")

WRITERS = 3
"""Objects on their way at a time; with their size, the extra memory of a save (`bench/checkpoint.py`)."""

COPIES_S = 30.0
"""Longest wait, behind the last commit of an attempt, for copies on this node that are still being written."""


class DamagedCheckpointError(DataError):
    """A checkpoint is not whole; the message says which file and what is wrong with it."""


class Objects:
    """The objects in one run's storage."""

    def __init__(self, storage: RunStorage, copies: NodeCache | None = None, ahead: ObjectsAhead | None = None) -> None:
        """The objects of a run.

        Args:
            storage: The run.
            copies: Copies on this node; None = there are none.
            ahead: Objects that are being read already.
        """
        self._storage = storage
        self._copies = copies
        self._copier = Copier(copies) if copies else None
        self._ahead = ahead or ObjectsAhead()
        self._whole: dict[str, int] = {}
        self._looked_at: set[str] = set()
        """Folders that were listed since the beginning of the save."""
        self._looking = threading.Lock()

    def known(self) -> dict[str, int]:
        """Sizes of the objects that this process has written or verified.

        That a file has the right name and size says nothing about its bytes, and a commit must not rest on them.
        """
        return self._whole

    def sizes(self, folder: str) -> dict[str, int]:
        """Sizes of all objects of a folder that are there, whatever is in them."""
        return {f"{folder}/{file}": info.size_bytes for file, info in self._storage.list(folder).items()}

    def all_sizes(self) -> dict[str, int]:
        """Sizes of all objects that are there. A run has hundreds of them for every checkpoint that it keeps."""
        return self.sizes(SHARED) | self.sizes(OBJECTS)

    def forget(self, key: str) -> None:
        """Note that an object was removed or is damaged, so that `put` writes it again."""
        self._whole.pop(key, None)

    def look_again(self) -> None:
        """Forget every known object, because another process has removed some."""
        self._whole = {}

    def begin_save(self) -> None:
        """Let `put` list the objects again before it relies on one that it has written earlier."""
        self._looked_at.clear()
        if self._copier:
            self._copier.clear()

    def put(self, data: Buffer, folder: str, suffix: str) -> StoredObject:
        """Write bytes, unless this process knows that they are there.

        Args:
            data: The bytes.
            folder: `OBJECTS` or `SHARED`.
            suffix: Of the object's name, with its dot.
        """
        # Hashed before the write: the name is the content, so an interrupted save can leave no object that lies.
        digest = integrity_hash(data)
        stored = StoredObject(f"{folder}/{digest}{suffix}", digest, len(data))
        # Not "if the key exists": a damaged object has the right name too, and a repeated step gives the same name
        # again.
        if not self._is_there(stored, folder):
            self._storage.write(stored.key, data)
            self._whole[stored.key] = stored.size_bytes
        return stored

    def _is_there(self, stored: StoredObject, folder: str) -> bool:
        """Whether this process has written or verified an object, and it is still there."""
        if self._whole.get(stored.key) != stored.size_bytes:
            return False
        # A person or another process may have removed objects since. One listing a save, and only where something has
        # not changed: usually all objects of a save are new, and the folder holds those of all checkpoints.
        with self._looking:
            if folder not in self._looked_at:
                there = self.sizes(folder)
                # Of a copy: the other writers note meanwhile what they have written.
                for key, size in self._whole.copy().items():
                    if key.startswith(folder) and there.get(key) != size:
                        self._whole.pop(key, None)
                self._looked_at.add(folder)
        return self._whole.get(stored.key) == stored.size_bytes

    def put_all(
        self, drafts: Iterable[Draft], go_on: Callable[[], None]
    ) -> Iterator[tuple[StoredObject, dict[str, StoredTensor]]]:
        """Write objects, a few at a time: that bounds the memory, and hashing hides behind writing.

        Args:
            drafts: The objects.
            go_on: Raises when the save is to be given up; asked before every object.

        Returns:
            Objects, each with the tensors in it.
        """
        # Threads are enough: copying and sending release the interpreter lock.
        with ThreadPoolExecutor(max_workers=WRITERS) as pool:
            pending: deque[Future[tuple[StoredObject, dict[str, StoredTensor]]]] = deque()
            for draft in drafts:
                # Objects that are made now wait in memory. Taking the oldest result first bounds them to one per
                # writer.
                if len(pending) == WRITERS:
                    yield result(pending.popleft())
                go_on()
                pending.append(pool.submit(self._put_draft, draft))
            while pending:
                yield result(pending.popleft())

    def _put_draft(self, draft: Draft) -> tuple[StoredObject, dict[str, StoredTensor]]:
        # Training never changes the tensors of the base, so all checkpoints share them.
        folder = SHARED if all(name.startswith(BASE) for name in draft.layout.places) else OBJECTS
        # The suffix tells other programs how to open the file; the hash alone would not.
        content = draft.content()
        stored = self.put(content, folder, ".safetensors")
        if self._copier and folder == OBJECTS:
            self._copier.add(stored.xxh3, content)  # the next attempt may start on this node
        return stored, {name: place.in_object(stored.key) for name, place in draft.layout.places.items()}

    def read_all(self, stored: Iterable[StoredObject], use: Callable[[StoredObject, Bytes], _T]) -> list[_T]:
        """Read objects, several at a time, every byte verified.

        Args:
            stored: Which.
            use: What to make of each.

        Raises:
            DamagedCheckpointError: One is missing, truncated or altered.
        """
        # Not the pool of `RemoteReader`: objects that wait for their parts could occupy all its threads.
        with ThreadPoolExecutor(max_workers=READERS) as pool:
            return list(pool.map(lambda one: use(one, self.read(one)), stored))

    def load_all(self, stored: Sequence[StoredObject]) -> dict[str, Bytes]:
        """Objects by key, every byte verified; those with a copy on this node are not read from the storage.

        Raises:
            DamagedCheckpointError: One is missing, truncated or altered.
        """
        turned = in_turn(stored, self._copies)
        with ThreadPoolExecutor(max_workers=READERS) as pool:
            return dict(zip((one.key for one in turned), pool.map(self._load, turned), strict=True))

    def _load(self, stored: StoredObject) -> Bytes:
        content = self._ahead.take(stored)
        if content is not None:
            if stored.key in self._ahead.from_storage:
                self._whole[stored.key] = stored.size_bytes
            return content
        return through(self._copies, stored.xxh3, stored.size_bytes, lambda: self.read(stored))

    def keep_copies_of(self, names: Collection[str]) -> None:
        """Remove the copies on this node of all objects but these.

        Args:
            names: Their hashes; none = nothing more is copied.
        """
        if self._copies is None or self._copier is None:
            return
        if not names:
            self._copier.clear()
        self._copies.keep_only(names)

    def wait_for_copies(self) -> None:
        """Wait for copies on this node that are still being written, for a while."""
        if self._copier:
            self._copier.wait(COPIES_S)

    def restored_from_copies(self, lost: Iterable[StoredObject]) -> list[StoredObject]:
        """Write lost objects again whose copies are on this node."""
        restored = []
        for stored in lost:
            content = self._copies.read(stored.xxh3, stored.size_bytes) if self._copies else None
            if content is not None:
                folder, _, file = stored.key.partition("/")
                self.forget(stored.key)
                self.put(content.data, folder, f".{file.rpartition('.')[2]}")
                restored.append(stored)
        return restored

    def read(self, stored: StoredObject) -> Bytes:
        """The bytes of an object, verified. A second read decides: the network may have altered the first one."""
        try:
            return self._read_once(stored)
        except DamagedCheckpointError:
            return self._read_once(stored)

    def _read_once(self, stored: StoredObject) -> Bytes:
        where = f"{self._storage.url}/{stored.key}"
        try:
            data = self._storage.read_large(stored.key, stored.size_bytes)
        except FileNotFoundError as error:
            self.forget(stored.key)  # else the same content would not be written again
            raise DamagedCheckpointError(f"{where}: missing.") from error
        except MemoryError as error:
            raise DamagedCheckpointError(f"{where}: no memory for the {stored.size_bytes} bytes of it.") from error
        if len(data) != stored.size_bytes:
            # A later commit must not rest on it, even where this process itself wrote it.
            self.forget(stored.key)
            raise DamagedCheckpointError(f"{where}: {len(data)} bytes, expected {stored.size_bytes}.")
        # Checked here and not by the server: some stores verify no checksum at all, and disks lose bits later.
        if integrity_hash(data.data) != stored.xxh3:
            self.forget(stored.key)
            raise DamagedCheckpointError(f"{where}: its bytes do not have the hash {stored.xxh3[:12]}….")
        self._whole[stored.key] = stored.size_bytes
        return data
