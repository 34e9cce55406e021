"""Shards where they are used: read in place from a local disk, or through a node-local copy from a bucket.

A row that is not here yet is one ranged request, so training starts with the first of them. Whole shards follow behind
it, in the order in which rows were asked for; then there is no more traffic. A copy is optional: a full disk or a lost
file costs requests, never a run. Copies are named by the hash of their content, so a changed dataset never meets them.
"""

import contextlib
import hashlib
import logging
import os
import queue
import tempfile
import threading
from pathlib import Path

import fsspec

from indextts_job import files
from indextts_job.data.shards import ReadRange, Shard
from indextts_job.errors import IndexTTSJobError
from indextts_job.storage_errors import patiently

logger = logging.getLogger(__name__)
DOWNLOADS = 4
"""Shards fetched at a time."""


def default_folder() -> Path:
    """Where copies lie unless the configuration says otherwise."""
    return Path(tempfile.gettempdir()) / "indextts-job-cache"


def shard_reader(folder: str, cache_folder: Path) -> ReadRange:
    """How the shards in a folder are read.

    Args:
        folder: Path or URL of the sharded dataset.
        cache_folder: For copies of remote shards; made when missing.
    """
    return LocalShards(files.local_path(folder)) if files.is_local(folder) else CachedShards(folder, cache_folder)


class LocalShards:
    """Shards on a local disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, shard: Shard, start: int, stop: int, *, fresh: bool = False) -> bytes:
        """Bytes [start, stop) of a shard; it is no copy, so it cannot be fresher."""
        del fresh
        return _read_range(self._folder / shard.name, start, stop)


class CachedShards:
    """Shards in a bucket, with copies on this node."""

    def __init__(self, folder: str, cache_folder: Path) -> None:
        self._folder = folder
        self._cache = cache_folder
        self._fs, self._root = fsspec.core.url_to_fs(folder)
        self._wanted: queue.Queue[Shard] = queue.Queue()
        self._asked: set[str] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._caching = True
        self.requests = 0
        """Ranged requests made for single rows."""

    def __call__(self, shard: Shard, start: int, stop: int, *, fresh: bool = False) -> bytes:
        """Bytes [start, stop) of a shard; `fresh` asks the bucket whatever is here."""
        copy = self._copy(shard)
        if fresh:
            copy.unlink(missing_ok=True)
        else:
            with contextlib.suppress(OSError):  # not here yet, evicted, or unreadable: the bucket has it
                if copy.stat().st_size == shard.size_bytes:
                    return _read_range(copy, start, stop)
        self._want(shard, again=fresh)
        self.requests += 1
        path = f"{self._root}/{shard.name}"
        what = f"reading {self._folder}/{shard.name}"
        return patiently(what, lambda: bytes(self._fs.cat_file(path, start=start, end=stop)), files.READ_PATIENCE_S)

    def _copy(self, shard: Shard) -> Path:
        return self._cache / f"{shard.sha256}.safetensors"

    def _want(self, shard: Shard, *, again: bool) -> None:
        """Have a shard fetched as a whole, once."""
        with self._lock:
            if not self._caching or (shard.name in self._asked and not again):
                return
            self._asked.add(shard.name)
            self._wanted.put(shard)
            if len(self._threads) < DOWNLOADS:
                thread = threading.Thread(target=self._fetch_wanted, name="cache", daemon=True)
                self._threads.append(thread)
                thread.start()

    def _fetch_wanted(self) -> None:
        while self._caching:
            shard = self._wanted.get()
            try:
                self._fetch(shard)
            except (OSError, IndexTTSJobError) as error:
                # Rows still come one by one; only the traffic stays.
                self._caching = False
                logger.warning("no node-local copy of %s any more (%s); rows are read from it.", self._folder, error)

    def _fetch(self, shard: Shard) -> None:
        path = f"{self._root}/{shard.name}"
        what = f"reading {self._folder}/{shard.name}"
        content = patiently(what, lambda: bytes(self._fs.cat_file(path)), files.READ_PATIENCE_S)
        if hashlib.sha256(content).hexdigest() != shard.sha256:
            raise OSError(f"{shard.name} does not have the hash that the index names")
        self._cache.mkdir(parents=True, exist_ok=True)
        copy = self._copy(shard)
        temporary = copy.with_name(f".tmp-{os.getpid()}-{threading.get_ident()}-{copy.name}")
        try:
            temporary.write_bytes(content)
            temporary.replace(copy)
        finally:
            temporary.unlink(missing_ok=True)


def _read_range(path: Path, start: int, stop: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        content = file.read(stop - start)
    if len(content) != stop - start:
        raise ValueError(f"{path} ends before byte {stop}")
    return content
