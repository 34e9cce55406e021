"""Objects of a run: bytes under the name of their hash, tensors in some of them.

What is there already is not written again, and what is read is compared with its hash.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy.ctypeslib  # noqa: F401  # safetensors imports it inside `save`; three threads at once broke that import
import safetensors.torch
import torch
from torch import Tensor

from indextts_job.checkpoint.manifest import StoredObject, StoredTensor
from indextts_job.errors import DataError
from indextts_job.storage.remote_files import Bytes
from indextts_job.storage.run_storage import RunStorage
from indextts_job.waiting import result

_T = TypeVar("_T")

OBJECTS = "objects"
# Objects of this size are one PUT each: nothing is left half uploaded, and a retry repeats 32 MiB at most.
OBJECT_BYTES = 32 * 2**20
"""Upper bound of one object (a larger tensor is an object of its own): unit of parallel writes and reads."""
WRITERS = 3
"""Objects in the making at a time; with their size, the extra memory of a save (`bench/checkpoint.py`)."""
READERS = 6


class DamagedCheckpointError(DataError):
    """A checkpoint is not whole; the message says which file and what is wrong with it."""


class Objects:
    """The objects in one run's storage."""

    def __init__(self, storage: RunStorage) -> None:
        self._storage = storage
        self._whole: dict[str, int] = {}

    def known(self) -> dict[str, int]:
        """Sizes of the objects that this process has written or verified.

        That a file has the right name and size says nothing about its bytes, and a commit must not rest on them.
        """
        return self._whole

    def sizes(self) -> dict[str, int]:
        """Sizes of all objects that are there, whatever is in them."""
        return {f"{OBJECTS}/{file}": info.size_bytes for file, info in self._storage.list(OBJECTS).items()}

    def forget(self, key: str) -> None:
        """Note that an object was removed or is damaged, so that `put` writes it again."""
        self._whole.pop(key, None)

    def look_again(self) -> None:
        """Forget every known object, because another process has removed some."""
        self._whole = {}

    def forget_the_lost(self) -> None:
        """Forget known objects that are gone or have another size, so that `put` writes them again. One listing."""
        there = self.sizes()
        self._whole = {key: size for key, size in self._whole.items() if there.get(key) == size}

    def put(self, data: bytes, suffix: str) -> StoredObject:
        """Write bytes, unless this process knows that they are there.

        Args:
            suffix: Of the object's name, with its dot.
        """
        # Hashed before the write: the name is the content, so an interrupted save can leave no object that lies.
        digest = hashlib.sha256(data).hexdigest()
        stored = StoredObject(f"{OBJECTS}/{digest}{suffix}", digest, len(data))
        # Not "if the key exists": a damaged object has the right name too, and a repeated step gives the same name
        # again.
        if self._whole.get(stored.key) != stored.size_bytes:
            self._storage.write(stored.key, data)
            self._whole[stored.key] = stored.size_bytes
        return stored

    def put_all(
        self, groups: Iterable[Mapping[str, Tensor]], go_on: Callable[[], None]
    ) -> Iterator[tuple[StoredObject, dict[str, StoredTensor]]]:
        """Write all tensors, a few objects at a time: that bounds the memory, and hashing hides behind writing.

        Args:
            groups: Tensors by full name; those of different groups never share an object.
            go_on: Raises when the save is to be given up; asked before every object.

        Returns:
            Objects, each with the tensors in it.
        """
        # Threads are enough: hashing, copying and sending release the interpreter lock.
        with ThreadPoolExecutor(max_workers=WRITERS) as pool:
            pending: deque[Future[tuple[StoredObject, dict[str, StoredTensor]]]] = deque()
            for part in (part for group in groups for part in _parts(group)):
                # Serialised objects wait in memory. Taking the oldest result first bounds them to one per writer.
                if len(pending) == WRITERS:
                    yield result(pending.popleft())
                go_on()
                pending.append(pool.submit(self._put_tensors, part))
            while pending:
                yield result(pending.popleft())

    def _put_tensors(self, tensors: Mapping[str, Tensor]) -> tuple[StoredObject, dict[str, StoredTensor]]:
        data = serialised(tensors)
        # The suffix tells other programs how to open the file; the hash alone would not.
        stored = self.put(data, ".safetensors")
        # The container: 8 bytes of header length, a JSON header with offsets behind it, then the bytes.
        header_size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + header_size])
        entries = {}
        for key in tensors:
            start, stop = (8 + header_size + offset for offset in header[key]["data_offsets"])
            entries[key] = StoredTensor(header[key]["dtype"], tuple(header[key]["shape"]), stored.key, start, stop)
        return stored, entries

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
        if len(data) != stored.size_bytes:
            # A later commit must not rest on it, even where this process itself wrote it.
            self.forget(stored.key)
            raise DamagedCheckpointError(f"{where}: {len(data)} bytes, expected {stored.size_bytes}.")
        # Checked here and not by the server: some stores verify no checksum at all, and disks lose bits later.
        if hashlib.sha256(data.data).hexdigest() != stored.sha256:
            self.forget(stored.key)
            raise DamagedCheckpointError(f"{where}: its bytes do not have the hash {stored.sha256[:12]}….")
        self._whole[stored.key] = stored.size_bytes
        return data


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}


def serialised(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of an object that holds these tensors; equal tensors give equal bytes."""
    # safetensors takes contiguous tensors only.
    return bytes(safetensors.torch.save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}))


def tensor_in(content: Bytes, entry: StoredTensor) -> Tensor:
    """A tensor as a view of the memory that its object was read into, without a copy."""
    return torch.from_numpy(content[entry.start : entry.stop]).view(_DTYPES[entry.dtype]).reshape(entry.shape)


def _parts(tensors: Mapping[str, Tensor]) -> Iterable[dict[str, Tensor]]:
    """Cut a group into objects of bounded size, by name, so that equal groups give equal objects."""
    part: dict[str, Tensor] = {}
    size = 0
    # By name: the cut must not depend on the order of the mapping, or unchanged tensors would get new objects.
    for key in sorted(tensors):
        tensor_bytes = tensors[key].numel() * tensors[key].element_size()
        # A tensor above the bound is an object of its own; tensors are not split.
        if part and size + tensor_bytes > OBJECT_BYTES:
            yield part
            part, size = {}, 0
        part[key] = tensors[key]
        size += tensor_bytes
    if part:
        yield part
