"""Copies of remote shards on this node: downloaded during training, shared by the jobs of the node, evicted for space.

Parts of a shard are in memory until it is whole, and rows are served from them. Writing and hashing copies comes behind
the network: it is done when there is nothing to request, or when the shards in memory fill half of their bound.
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
from functools import partial
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
LONGEST_WAIT_S = 2.0
"""A row that was expected soon is requested after this: a download may hang."""
ASSUMED_BYTES_PER_S = 500e6
"""Rate of the downloads, weighted as `ASSUMED_S` of measurement. One that is too high costs the first batch of a run
`WORTH_WAITING_S` at most, one that is too low requests rows that the downloads bring as well."""
ASSUMED_S = 0.1
MEMORY_BYTES = 2**28
"""Bound of the shards that are in memory: no other is begun beyond it."""
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
        self.parts: dict[int, bytes] = {}
        """The parts that have arrived, by their first bytes."""
        self.finishing = False

    @property
    def whole(self) -> bool:
        """Whether all parts have arrived."""
        return len(self.parts) * PART_BYTES >= self.shard.size_bytes

    def range(self, start: int, stop: int) -> memoryview | None:
        """Bytes [start, stop), if all parts of the range have arrived."""
        pieces = []
        for part in range(start - start % PART_BYTES, stop, PART_BYTES):
            content = self.parts.get(part)
            if content is None:
                return None
            pieces.append(memoryview(content)[max(0, start - part) : stop - part])
        # Few rows lie in two parts, so nearly all are given without a copy.
        return pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))


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
        self._fetching, self._received_bytes = 0, 0
        self._busy_since_s, self._busy_s, self._arrived_at_s = 0.0, 0.0, 0.0

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

    def received(self, shard: Shard, start: int, stop: int) -> memoryview | None:
        """A range of a shard that is being downloaded, if it has arrived."""
        running = self._running.get(shard.sha256)
        return running.range(start, stop) if running else None

    def soon(self, shard: Shard) -> bool:
        """Whether a shard that was requested is expected soon."""
        with self._changed:
            return self._seconds_until_whole(shard) <= WORTH_WAITING_S

    def wait_for(self, shard: Shard, start: int, stop: int) -> bool:
        """Wait for a range for as long as it is expected soon; False if it does not arrive."""
        until_s = time.monotonic() + LONGEST_WAIT_S
        with self._changed:
            while self._seconds_until_whole(shard) <= WORTH_WAITING_S and time.monotonic() < until_s:
                # With a bound: the expectation grows while nothing arrives.
                self._changed.wait_for(lambda: self._has(shard, start, stop), LOOK_S)
                if self._has(shard, start, stop):
                    return True
            return False

    def _has(self, shard: Shard, start: int, stop: int) -> bool:
        running = self._running.get(shard.sha256)
        return running.range(start, stop) is not None if running else shard.sha256 not in self._wanted

    def _seconds_until_whole(self, shard: Shard) -> float:
        """Seconds until the last part of a shard arrives, at the mean rate so far."""
        now_s = time.monotonic()
        if self._fetching and now_s - max(self._arrived_at_s, self._busy_since_s) > LONGEST_WAIT_S:
            return math.inf  # the requests hang: the wait for one row is enough to see that
        busy_s = self._busy_s + (now_s - self._busy_since_s if self._fetching else 0.0)
        rate = (ASSUMED_BYTES_PER_S * ASSUMED_S + self._received_bytes) / (ASSUMED_S + busy_s)
        ahead = 0
        for running in self._running.values():
            ahead += max(0, running.shard.size_bytes - PART_BYTES * len(running.parts))
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
                task = self._next_task()
                while task is None:
                    self._changed.wait(timeout=LOOK_S)
                    task = self._next_task()
            try:
                task()
            except (OSError, ValueError, IndexTTSJobError) as error:
                self._stop(error)

    def _next_task(self) -> Callable[[], None] | None:
        """The next part to request, or the next whole shard to finish; None if there is nothing to do."""
        whole = self._whole()
        # One at a time: hashing takes the time of a processor, and training needs them.
        may_finish = bool(whole) and not self._finishing()
        urgent = may_finish and sum(download.shard.size_bytes for download in whole) >= MEMORY_BYTES // 2
        if not urgent and (part := self._next_part()):
            return part
        if may_finish:
            whole[0].finishing = True
            return partial(self._finish, whole[0])
        return None

    def _whole(self) -> list[_Download]:
        return [download for download in self._running.values() if download.whole and not download.finishing]

    def _finishing(self) -> bool:
        return any(download.finishing for download in self._running.values())

    def _next_part(self) -> Callable[[], None] | None:
        for download in self._running.values():
            if download.waiting:
                return partial(self._get_part, download, download.waiting.popleft())
        # All parts of the running shards are requested: begin with the next shard.
        while self._wanted and not self._stopped and self._has_room():
            if begun := self._begin_next():
                return partial(self._get_part, begun, begun.waiting.popleft())
        return None

    def _has_room(self) -> bool:
        """Whether another shard may be in memory."""
        held_bytes = sum(download.shard.size_bytes for download in self._running.values())
        return not held_bytes or held_bytes + self._queue()[0].size_bytes <= MEMORY_BYTES

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
        self._running[shard.sha256] = download
        return download

    def _begin(self, shard: Shard) -> _Download:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        spare_bytes = max(SPARE_BYTES, self._free_ratio * shutil.disk_usage(self._folder).total)
        if not self._tidied:
            remove_abandoned(self._folder)
            self._tidied = True
        while shutil.disk_usage(self._folder).free < shard.size_bytes + spare_bytes:
            if not evict_oldest(self._folder, self._used):
                raise OSError(errno.ENOSPC, f"less than {spare_bytes / 1e9:.1f} GB would be left on {self._folder}")
        return _Download(shard, self._folder / f".{shard.sha256}{PARTIAL}")

    def _get_part(self, download: _Download, start: int) -> None:
        with self._changed:
            if not self._fetching:
                self._busy_since_s = time.monotonic()
            self._fetching += 1
        try:
            content = self._fetch(download.shard, start, min(start + PART_BYTES, download.shard.size_bytes))
        finally:
            with self._changed:
                self._fetching -= 1
                if not self._fetching:
                    self._busy_s += time.monotonic() - self._busy_since_s
        with self._changed:
            download.parts[start] = content
            self._received_bytes += len(content)
            self._arrived_at_s = time.monotonic()
            self._changed.notify_all()

    def _finish(self, download: _Download) -> None:
        """Write a shard that has arrived as a copy, once its hash was compared."""
        shard, parts = download.shard, [content for _, content in sorted(download.parts.items())]
        digest = hashlib.sha256()
        for content in parts:
            digest.update(content)
        if digest.hexdigest() != shard.sha256:
            raise OSError(f"{shard.name} does not have the hash that the index names")
        for content in parts:
            download.lock.write(content)
        download.lock.flush()
        download.path.rename(copy_path(self._folder, shard))
        with self._changed:
            self._running.pop(shard.sha256, None)  # `_stop` may have removed it meanwhile
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
