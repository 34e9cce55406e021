"""Copies of remote shards on this node: downloaded during training, shared by the jobs of the node, evicted for space.

A copy is named by the hash of its content. One process of a node downloads a shard, under a file lock that the kernel
releases when the process ends; unfinished files of dead processes are removed. Other processes evict copies too, so
files may vanish at any moment, which is no error here.
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
from collections.abc import Callable, Container, Iterable
from pathlib import Path

from indextts_job.data.shard_index import Shard
from indextts_job.errors import IndexTTSJobError
from indextts_job.storage.remote_files import PART_BYTES
from indextts_job.waiting import LOOK_S

logger = logging.getLogger(__name__)
DOWNLOADS = 8
"""Number of parts downloaded at a time."""
SPARE_BYTES = 2**30
"""Least space that stays free on the disk of the copies: other programs write there too."""
WORTH_WAITING_S = 0.5
"""A row that is expected within this time is waited for: a request of its own would only slow down the downloads."""
ASSUMED_BYTES_PER_S = 100e6
"""Rate of the downloads, weighted as one second of measurement."""
COPIES = "*.safetensors"
PARTIAL = ".partial"


def copy_path(folder: Path, shard: Shard) -> Path:
    """The path of the complete copy of a shard."""
    return folder / f"{shard.sha256}.safetensors"


def _is(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that a path names; another process may have renamed or removed it."""
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def remove_abandoned(folder: Path) -> None:
    """Remove the unfinished downloads of processes that have ended: nobody holds the lock of these files."""
    for path in folder.glob(f".*{PARTIAL}"):
        with contextlib.suppress(OSError):  # in use, already removed, or another user's: the file stays
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is(descriptor, path):
                    path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def evict_oldest(folder: Path, used: Container[str]) -> bool:
    """Remove the oldest copy whose hash is not in use.

    Returns:
        Whether there is space for another copy now: one was removed, by this or in the same moment by another process.
    """
    for path in _oldest_first(path for path in folder.glob(COPIES) if path.stem not in used):
        with contextlib.suppress(PermissionError):  # another user's
            path.unlink(missing_ok=True)
            return True
    return False


def _oldest_first(paths: Iterable[Path]) -> list[Path]:
    written_at_s = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # another process has removed it
            written_at_s[path] = path.stat().st_mtime
    return sorted(written_at_s, key=lambda path: written_at_s[path])


class _Download:
    """A shard that is being downloaded by this process; its file is locked."""

    def __init__(self, shard: Shard, path: Path) -> None:
        self.shard = shard
        self.path = path
        # The folder may be shared with other users. Without O_NOFOLLOW a link of theirs could make us overwrite one of
        # our own files.
        self.lock = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+b")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is(self.lock.fileno(), path):
                raise BlockingIOError(f"{path} was finished or removed by another process meanwhile")
            # Parts of an earlier process are not used: a crash of the node may have lost some of their bytes.
            self.lock.truncate(0)
            # A full disk is reported here and not in the middle of the download.
            os.posix_fallocate(self.lock.fileno(), 0, shard.size_bytes)
        except OSError:
            self.lock.close()
            raise
        self.waiting = deque(range(0, shard.size_bytes, PART_BYTES))
        """First bytes of the parts that are not requested yet."""
        self.arrived: set[int] = set()

    def covers(self, start: int, stop: int) -> bool:
        """Whether all parts of a range have arrived."""
        return all(part in self.arrived for part in range(start - start % PART_BYTES, stop, PART_BYTES))


class Downloads:
    """Downloads the requested shards one after the other, with several parts at a time."""

    def __init__(self, folder: Path, fetch: Callable[[Shard, int, int], bytes], free_ratio: float) -> None:
        self._folder = folder
        self._fetch = fetch
        self._free_ratio = free_ratio
        self._wanted: dict[str, Shard] = {}
        """Shards that are not being downloaded yet, by hash, in the order in which they were requested."""
        self._running: dict[str, _Download] = {}
        self._used: set[str] = set()
        """Hashes of the shards that this process reads, which it does not evict."""
        self._changed = threading.Condition()
        """Guards all fields; notified when a part arrives or a shard is requested."""
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self._tidied = False
        self._received_bytes, self._busy_since_s, self._busy_s = 0, 0.0, 0.0

    def want(self, shard: Shard) -> None:
        """Request the download of a shard; repeated requests have no effect."""
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
        """The unfinished file of a shard, if the range has arrived."""
        with self._changed:
            running = self._running.get(shard.sha256)
            return running.path if running and running.covers(start, stop) else None

    def wait_for(self, shard: Shard, start: int, stop: int) -> bool:
        """Wait for a range that is expected soon; False if it is not expected soon or does not arrive."""
        with self._changed:
            if self._seconds_until_whole(shard) > WORTH_WAITING_S:
                return False
            return self._changed.wait_for(lambda: self._has(shard, start, stop), 4 * WORTH_WAITING_S)

    def _has(self, shard: Shard, start: int, stop: int) -> bool:
        running = self._running.get(shard.sha256)
        return running.covers(start, stop) if running else shard.sha256 not in self._wanted

    def _seconds_until_whole(self, shard: Shard) -> float:
        """Seconds until the last part of a shard arrives, at the mean rate so far."""
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
        """The requested shards in the order of their download."""
        # Those with many rows in few bytes first: they end the most requests for single rows.
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
        """The next part to download, and the shard that it belongs to; None if there is nothing to do."""
        for download in self._running.values():
            if download.waiting:
                return download, download.waiting.popleft()
        # All parts of the running shards are requested: begin with the next shard.
        while self._wanted and not self._stopped:
            if begun := self._begin_next():
                return begun, begun.waiting.popleft()
        return None

    def _begin_next(self) -> _Download | None:
        shard = self._queue()[0]
        del self._wanted[shard.sha256]
        try:
            download = self._begin(shard)
        except BlockingIOError:
            return None  # another process of this node downloads it, and we will read its copy
        except OSError as error:
            self._stop(error)
            return None
        if not self._running:
            self._busy_since_s = time.monotonic()
        self._running[shard.sha256] = download
        return download

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
        # A file object of its own: the threads would share the position of the locked one.
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
            self._running.pop(digest, None)  # `_stop` may have removed it meanwhile
            if not self._running:
                self._busy_s += time.monotonic() - self._busy_since_s
            self._changed.notify_all()
        download.lock.close()

    def _stop(self, error: Exception) -> None:
        """End all downloads for good, with a warning: rows are then read from the bucket one by one."""
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
