"""Copies of remote shards on this node: fetched behind the training, shared by the jobs of the node, evicted for room.

A copy is named by the hash of its content. One process of a node fetches a shard at a time, under a lock that ends
with it; what a dead process left half done is removed. Files may vanish at any moment, because other processes make
room too, so nothing here fails for that.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import math
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Container
from pathlib import Path

from indextts_job.data.shard_index import Shard
from indextts_job.errors import IndexTTSJobError
from indextts_job.storage.remote_files import PART_BYTES
from indextts_job.waiting import LOOK_S

logger = logging.getLogger(__name__)
DOWNLOADS = 8
"""Parts fetched at a time."""
SPARE_BYTES = 2**30
"""Left free on the disk of the copies at least: others write there too."""
WORTH_WAITING_S = 0.5
"""A row whose part is expected within this time is waited for: single requests would only delay all parts."""
ASSUMED_BYTES_PER_S = 100e6
"""Rate of the downloads until one is measured."""
COPIES = "*.safetensors"
PARTIAL = ".partial"


def copy_path(folder: Path, shard: Shard) -> Path:
    """Where the whole copy of a shard lies."""
    return folder / f"{shard.sha256}.safetensors"


def _is(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that a path names; another process may have renamed or removed it."""
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def remove_abandoned(folder: Path) -> None:
    """Remove what processes left half fetched that are not alive any more: nobody holds their lock.

    What cannot be removed stays: it is in use, gone already, or another user's.
    """
    for path in folder.glob(f".*{PARTIAL}"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is(descriptor, path):
                    path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def evict_oldest(folder: Path, used: Container[str]) -> bool:
    """Remove the copy that was written first, of those whose hash is not in use.

    Returns:
        Whether there was one that may be removed. Another process may have removed it in the same moment; there is room
        all the same.
    """
    written_at_s = {}
    for path in folder.glob(COPIES):
        if path.stem not in used:
            with contextlib.suppress(FileNotFoundError):
                written_at_s[path] = path.stat().st_mtime
    for path in sorted(written_at_s, key=lambda path: written_at_s[path]):
        with contextlib.suppress(PermissionError):  # another user's
            path.unlink(missing_ok=True)
            return True
    return False


class _Download:
    """A shard on its way here."""

    def __init__(self, shard: Shard, path: Path) -> None:
        self.shard = shard
        self.path = path
        # The folder may be shared: a link that somebody else put there would lead to a file of ours.
        self.lock = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+b")
        try:
            # One process of a node fetches a shard; its lock ends with it, whatever becomes of it.
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is(self.lock.fileno(), path):
                raise BlockingIOError(f"{path} was finished or removed by another process meanwhile")
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


class Downloads:
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
        self._tidied = False
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
                    self._changed.wait(timeout=LOOK_S)
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
        if not self._tidied:
            remove_abandoned(self._folder)
            self._tidied = True
        while shutil.disk_usage(self._folder).free < shard.size_bytes + spare_bytes:
            if not evict_oldest(self._folder, self._used):
                raise OSError(errno.ENOSPC, f"less than {spare_bytes / 1e9:.1f} GB would be left on {self._folder}")
        return _Download(shard, self._folder / f".{shard.sha256}{PARTIAL}")

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
        download.path.rename(copy_path(self._folder, download.shard))
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
