"""Shards where they are used: read in place from a local disk, or through a node-local copy from a bucket.

A row that is not here yet is one ranged request, so training starts with the first of them. The shards follow behind
it in the order in which rows were asked for, in parts that serve rows as soon as they are here; then there is no more
traffic. A copy is optional: a full disk or a lost file costs requests, never a run. Copies are named by the hash of
their content, so a changed dataset never meets them, and jobs of one node share them.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import math
import os
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from indextts_job import files
from indextts_job.data.shard_index import Shard
from indextts_job.data.shards import ReadRange
from indextts_job.errors import IndexTTSJobError
from indextts_job.remote_files import PART_BYTES, RemoteFileSystem
from indextts_job.storage_errors import patiently

logger = logging.getLogger(__name__)
DOWNLOADS = 8
"""Parts fetched at a time."""
SPARE_BYTES = 2**30
"""Left free on the disk of the copies at least: others write there too."""
MAPPED_COPIES = 256
"""Copies mapped at a time: each holds an open file, of which a process may have 1,024 in some containers."""
WORTH_WAITING_S = 0.5
"""A row whose part is expected within this time is waited for: single requests would only delay all parts."""
ASSUMED_BYTES_PER_S = 100e6
"""Rate of the downloads until one is measured."""
COPIES = "*.safetensors"


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
        self._filesystem, self._root = RemoteFileSystem.of(folder)
        self._downloads = _Downloads(cache_folder, self._fetch, free_ratio)
        self._mapped = lru_cache(maxsize=MAPPED_COPIES)(self._map)
        self.requests = 0
        """Ranged requests made for single rows."""

    def __call__(self, shard: Shard, start: int, stop: int, *, fresh: bool = False) -> memoryview:
        """Bytes [start, stop) of a shard; `fresh` asks the bucket whatever is here."""
        if fresh:
            _copy_path(self._cache, shard).unlink(missing_ok=True)
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
        mapped = np.memmap(_copy_path(self._cache, shard), np.uint8, mode="r").data
        if len(mapped) != shard.size_bytes:
            raise ValueError(f"the copy of {shard.name} is cut off")
        return mapped

    def _fetch(self, shard: Shard, start: int, stop: int) -> bytes:
        path, where = f"{self._root}/{shard.name}", f"{self._folder}/{shard.name}"
        what = f"reading {where}"
        content = patiently(what, lambda: self._filesystem.read_range(path, start, stop), files.READ_PATIENCE_S)
        if len(content) != stop - start:
            raise ValueError(f"{where} ends before byte {stop}")
        return content


class _Download:
    """A shard on its way here."""

    def __init__(self, shard: Shard, path: Path) -> None:
        self.shard = shard
        self.path = path
        self.lock = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        try:
            # One process of a node fetches a shard; its lock ends with it, whatever becomes of it.
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self.lock.fileno()).st_ino != path.stat().st_ino:
                raise BlockingIOError(f"{path} was finished by another process meanwhile")
            self.lock.truncate(0)
            os.posix_fallocate(self.lock.fileno(), 0, shard.size_bytes)
        except OSError:
            self.lock.close()
            raise
        self.waiting = deque(range(0, shard.size_bytes, PART_BYTES))
        self.arrived: set[int] = set()

    def covers(self, start: int, stop: int) -> bool:
        """Whether all parts of a range are here."""
        return all(part in self.arrived for part in range(start - start % PART_BYTES, stop, PART_BYTES))


class _Downloads:
    """Fetches wanted shards one after the other, several parts at a time."""

    def __init__(self, folder: Path, fetch: Callable[[Shard, int, int], bytes], free_ratio: float) -> None:
        self._folder = folder
        self._fetch = fetch
        self._free_ratio = free_ratio
        self._wanted: dict[str, Shard] = {}
        """By hash, in the order in which they were asked for first."""
        self._running: dict[str, _Download] = {}
        self._used: set[str] = set()
        """Hashes that this process has asked for: not its own to evict."""
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self._received_bytes, self._busy_since_s, self._busy_s = 0, 0.0, 0.0

    def want(self, shard: Shard) -> None:
        """Have a shard fetched, if nobody is at it."""
        with self._changed:
            self._used.add(shard.sha256)
            if self._stopped or shard.sha256 in self._wanted or shard.sha256 in self._running:
                return
            self._wanted[shard.sha256] = shard
            if len(self._threads) < DOWNLOADS:
                thread = threading.Thread(target=self._work, name="cache", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify()

    def partial_with(self, shard: Shard, start: int, stop: int) -> Path | None:
        """The file of a shard on its way here, if the range has arrived."""
        with self._changed:
            running = self._running.get(shard.sha256)
            return running.path if running and running.covers(start, stop) else None

    def wait_for(self, shard: Shard, start: int, stop: int) -> bool:
        """Wait for a range that is expected soon; False when it is not, or does not come."""
        with self._changed:
            if self._seconds_until_whole(shard) > WORTH_WAITING_S:
                return False
            return self._changed.wait_for(lambda: self._has(shard, start, stop), 4 * WORTH_WAITING_S)

    def _has(self, shard: Shard, start: int, stop: int) -> bool:
        running = self._running.get(shard.sha256)
        return running.covers(start, stop) if running else shard.sha256 not in self._wanted

    def _seconds_until_whole(self, shard: Shard) -> float:
        """When the last part of a shard will be here, at the rate so far."""
        busy_s = self._busy_s + (time.monotonic() - self._busy_since_s if self._running else 0.0)
        rate = (ASSUMED_BYTES_PER_S + self._received_bytes) / (1.0 + busy_s)
        ahead = 0
        for running in self._running.values():
            ahead += running.shard.size_bytes - PART_BYTES * len(running.arrived)
            if running.shard is shard:
                return ahead / rate
        for wanted in self._queue():
            ahead += wanted.size_bytes
            if wanted is shard:
                return ahead / rate
        return math.inf

    def _queue(self) -> list[Shard]:
        """Wanted shards in the order in which they will be fetched: those with many rows in few bytes first."""
        return sorted(self._wanted.values(), key=lambda shard: shard.size_bytes / shard.rows)

    def _work(self) -> None:
        while True:
            with self._changed:
                task = self._next_part()
                while task is None:
                    self._changed.wait()
                    task = self._next_part()
            download, start = task
            try:
                self._get_part(download, start)
            except (OSError, ValueError, IndexTTSJobError) as error:
                self._stop(error)

    def _next_part(self) -> tuple[_Download, int] | None:
        """What to fetch now; begins the next shard when all parts of those begun are on their way."""
        for download in self._running.values():
            if download.waiting:
                return download, download.waiting.popleft()
        while self._wanted and not self._stopped:
            shard = self._queue()[0]
            del self._wanted[shard.sha256]
            try:
                download = self._begin(shard)
            except BlockingIOError:
                continue  # another process of this node is at it, and will leave a copy
            except OSError as error:
                self._stop(error)
                return None
            if not self._running:
                self._busy_since_s = time.monotonic()
            self._running[shard.sha256] = download
            return download, download.waiting.popleft()
        return None

    def _begin(self, shard: Shard) -> _Download:
        self._folder.mkdir(parents=True, exist_ok=True)
        spare_bytes = max(SPARE_BYTES, self._free_ratio * shutil.disk_usage(self._folder).total)
        while shutil.disk_usage(self._folder).free < shard.size_bytes + spare_bytes:
            self._evict(spare_bytes)
        return _Download(shard, self._folder / f".{shard.sha256}.partial")

    def _evict(self, spare_bytes: float) -> None:
        """Remove the copy that was written first, of those that this process does not use."""
        others = [path for path in self._folder.glob(COPIES) if path.stem not in self._used]
        if not others:
            raise OSError(errno.ENOSPC, f"less than {spare_bytes / 1e9:.1f} GB would be left on {self._folder}")
        min(others, key=lambda path: path.stat().st_mtime).unlink(missing_ok=True)

    def _get_part(self, download: _Download, start: int) -> None:
        content = self._fetch(download.shard, start, min(start + PART_BYTES, download.shard.size_bytes))
        with download.path.open("r+b") as file:
            file.seek(start)
            file.write(content)
        with self._changed:
            download.arrived.add(start)
            self._received_bytes += len(content)
            whole = len(download.arrived) * PART_BYTES >= download.shard.size_bytes
            self._changed.notify_all()
        if whole:
            self._finish(download)

    def _finish(self, download: _Download) -> None:
        with download.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != download.shard.sha256:
            raise OSError(f"{download.shard.name} does not have the hash that the index names")
        download.path.rename(_copy_path(self._folder, download.shard))
        with self._changed:
            self._running.pop(digest, None)  # a stop may have cleared it meanwhile
            if not self._running:
                self._busy_s += time.monotonic() - self._busy_since_s
            self._changed.notify_all()
        download.lock.close()

    def _stop(self, error: Exception) -> None:
        """Do without further copies: rows still come one by one, only the traffic stays."""
        with self._changed:
            if not self._stopped:
                logger.warning("no further copies of shards in %s (%s); rows are read remotely.", self._folder, error)
            self._stopped = True
            self._wanted.clear()
            for download in self._running.values():
                download.waiting.clear()
                download.path.unlink(missing_ok=True)
                download.lock.close()
            self._running.clear()
            self._changed.notify_all()


def _copy_path(folder: Path, shard: Shard) -> Path:
    return folder / f"{shard.sha256}.safetensors"


def _read_range(path: Path, start: int, stop: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        content = file.read(stop - start)
    if len(content) != stop - start:
        raise ValueError(f"{path} ends before byte {stop}")
    return content
