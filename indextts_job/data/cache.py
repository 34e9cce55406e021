"""Read rows of shards: directly from a local disk, or from a bucket with copies on this node.

A row that has no copy yet is one ranged request, so training starts at once. Whole shards are downloaded in the
background, in the order in which their rows were first read, and serve rows from every part that has arrived. Copies
are optional: a full disk or a lost file costs requests and never ends a run. They are named by the hash of their
content, so they cannot be mixed up with those of a changed dataset, and the jobs of a node share them.
"""

import contextlib
from pathlib import Path

import numpy as np

from indextts_job.data.downloads import Downloads, copy_path
from indextts_job.data.shard_index import Shard
from indextts_job.data.shards import ReadRange
from indextts_job.storage import files
from indextts_job.storage.node_cache import own_file
from indextts_job.storage.reader import RemoteReader

MAPPED_COPIES = 256
"""Number of copies mapped at a time: each holds an open file, and some containers allow a process only 1,024."""


def shard_reader(folder: str, cache_folder: Path, free_ratio: float) -> ReadRange:
    """The function that reads ranges of the shards in a folder.

    Args:
        folder: Path or URL of the sharded dataset.
        cache_folder: Folder for copies of remote shards; created when missing.
        free_ratio: Share of the disk that the copies leave free.
    """
    if files.is_local(folder):
        return LocalShards(files.local_path(folder))
    return CachedShards(folder, cache_folder, free_ratio)


class LocalShards:
    """Shards on a local disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def here(self, shard: Shard, start: int, stop: int) -> memoryview | None:
        """See `shards.ReadRange`."""
        with contextlib.suppress(OSError, ValueError):
            return self(shard, start, stop)
        return None

    def soon(self, shard: Shard) -> bool:
        """See `shards.ReadRange`."""
        del shard  # what is not here does not come
        return False

    def __call__(self, shard: Shard, start: int, stop: int, *, fresh: bool = False) -> memoryview:
        """See `shards.ReadRange`."""
        del fresh  # there is no copy to skip
        return memoryview(_read_range(self._folder / shard.name, start, stop))


class CachedShards:
    """Shards in a bucket, with copies on this node."""

    def __init__(self, folder: str, cache_folder: Path, free_ratio: float = 0.0) -> None:
        self._folder = folder
        self._cache = cache_folder
        self._reader = RemoteReader(folder, files.READ_PATIENCE_S)
        self._downloads = Downloads(cache_folder, self._fetch, free_ratio)
        self._copies: dict[str, memoryview] = {}
        """Copies that are mapped, by hash, the oldest first."""
        self.requests = 0
        """Ranged requests made for single rows."""

    def here(self, shard: Shard, start: int, stop: int) -> memoryview | None:
        """See `shards.ReadRange`. A row that is not here has its shard downloaded."""
        copy = self._copies.get(shard.sha256)
        if copy is not None:
            return copy[start:stop]
        received = self._downloads.received(shard, start, stop)
        if received is not None:
            return received
        # Any failure of a copy (missing, evicted, truncated) is ignored: the bucket has the bytes.
        with contextlib.suppress(OSError, ValueError):
            return self._mapped(shard)[start:stop]
        self._downloads.want(shard)
        return None

    def soon(self, shard: Shard) -> bool:
        """See `shards.ReadRange`."""
        return self._downloads.soon(shard)

    def __call__(self, shard: Shard, start: int, stop: int, *, fresh: bool = False) -> memoryview:
        """See `shards.ReadRange`; with `fresh` the copy of the shard is removed."""
        if fresh:
            # The caller has found wrong bytes, so the copy must not serve other rows either.
            with contextlib.suppress(OSError):
                copy_path(self._cache, shard).unlink(missing_ok=True)
            self._copies.pop(shard.sha256, None)
            self._downloads.want(shard)
        elif (found := self._soon_here(shard, start, stop)) is not None:
            return found
        self.requests += 1
        return memoryview(self._fetch(shard, start, stop))

    def _soon_here(self, shard: Shard, start: int, stop: int) -> memoryview | None:
        found = self.here(shard, start, stop)
        if found is None and self._downloads.wait_for(shard, start, stop):
            found = self.here(shard, start, stop)
        return found

    def _mapped(self, shard: Shard) -> memoryview:
        # A whole copy is never written again, only renamed into place and unlinked, so a mapping stays valid.
        with own_file(copy_path(self._cache, shard)) as file:
            mapped = np.memmap(file, np.uint8, mode="r").data
        if len(mapped) != shard.size_bytes:
            raise ValueError(f"the copy of {shard.name} is cut off")
        while len(self._copies) >= MAPPED_COPIES:
            self._copies.pop(next(iter(self._copies)), None)
        self._copies[shard.sha256] = mapped
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
