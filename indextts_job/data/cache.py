"""Shards where they are used: read in place from a local disk, or through a node-local copy from a bucket.

A row that is not here yet is one ranged request, so training starts with the first of them. The shards follow behind
it in the order in which rows were asked for, in parts that serve rows as soon as they are here; then there is no more
traffic. A copy is optional: a full disk or a lost file costs requests, never a run. Copies are named by the hash of
their content, so a changed dataset never meets them, and jobs of one node share them.
"""

import contextlib
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from indextts_job.data.downloads import Downloads, copy_path
from indextts_job.data.shard_index import Shard
from indextts_job.data.shards import ReadRange
from indextts_job.storage import files
from indextts_job.storage.reader import RemoteReader

MAPPED_COPIES = 256
"""Copies mapped at a time: each holds an open file, of which a process may have 1,024 in some containers."""


def default_folder() -> Path:
    """Where copies lie unless the configuration says otherwise."""
    return Path(tempfile.gettempdir()) / "indextts-job-cache"


def shard_reader(folder: str, cache_folder: Path, free_ratio: float) -> ReadRange:
    """How the shards in a folder are read.

    Args:
        folder: Path or URL of the sharded dataset.
        cache_folder: For copies of remote shards; made when missing.
        free_ratio: Share of the disk that the copies leave free.
    """
    if files.is_local(folder):
        return LocalShards(files.local_path(folder))
    return CachedShards(folder, cache_folder, free_ratio)


class LocalShards:
    """Shards on a local disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, shard: Shard, start: int, stop: int, *, fresh: bool = False) -> memoryview:
        """Bytes [start, stop) of a shard; it is no copy, so it cannot be fresher."""
        del fresh
        return memoryview(_read_range(self._folder / shard.name, start, stop))


class CachedShards:
    """Shards in a bucket, with copies on this node."""

    def __init__(self, folder: str, cache_folder: Path, free_ratio: float = 0.0) -> None:
        self._folder = folder
        self._cache = cache_folder
        self._reader = RemoteReader(folder, files.READ_PATIENCE_S)
        self._downloads = Downloads(cache_folder, self._fetch, free_ratio)
        self._mapped = lru_cache(maxsize=MAPPED_COPIES)(self._map)
        self.requests = 0
        """Ranged requests made for single rows."""

    def __call__(self, shard: Shard, start: int, stop: int, *, fresh: bool = False) -> memoryview:
        """Bytes [start, stop) of a shard; `fresh` asks the bucket whatever is here."""
        if fresh:
            copy_path(self._cache, shard).unlink(missing_ok=True)
            self._mapped.cache_clear()
        else:
            with contextlib.suppress(OSError, ValueError):  # not here yet, evicted, or cut off: the bucket has it
                return self._from_copy(shard, start, stop)
        self._downloads.want(shard)
        if not fresh and self._downloads.wait_for(shard, start, stop):
            with contextlib.suppress(OSError, ValueError):
                return self._from_copy(shard, start, stop)
        self.requests += 1
        return memoryview(self._fetch(shard, start, stop))

    def _from_copy(self, shard: Shard, start: int, stop: int) -> memoryview:
        path = self._downloads.partial_with(shard, start, stop)
        if path:
            return memoryview(_read_range(path, start, stop))
        return self._mapped(shard)[start:stop]

    def _map(self, shard: Shard) -> memoryview:
        # Whole copies are only ever renamed here and unlinked, so a mapping stays good.
        mapped = np.memmap(copy_path(self._cache, shard), np.uint8, mode="r").data
        if len(mapped) != shard.size_bytes:
            raise ValueError(f"the copy of {shard.name} is cut off")
        return mapped

    def _fetch(self, shard: Shard, start: int, stop: int) -> bytes:
        content = self._reader.read_range(start, stop, shard.name)
        if len(content) != stop - start:
            raise ValueError(f"{self._folder}/{shard.name} ends before byte {stop}")
        return content


def _read_range(path: Path, start: int, stop: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        content = file.read(stop - start)
    if len(content) != stop - start:
        raise ValueError(f"{path} ends before byte {stop}")
    return content
