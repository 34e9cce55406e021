"""Copies of a run's objects and of large inputs on this node's disk, for the next attempt and for the other processes.

An attempt that starts again on its node then reads nothing large from the bucket, and of several processes of a node
each reads its share and finds the rest here. A copy is named by the hash of its content and compared with it whenever
it is read. The folder belongs to this user alone, because somebody could make other bytes with the same fast hash.
Copies are optional: a full disk, a foreign folder or a lost file costs requests and never ends a run.
"""

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import stat
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from indextts_job.background import begin, give_way
from indextts_job.hashing import INTEGRITY_DIGITS, Buffer, integrity_hash
from indextts_job.storage.remote_files import Bytes
from indextts_job.storage.urls import local_path
from indextts_job.waiting import LOOK_S, pause

logger = logging.getLogger(__name__)

SPARE_BYTES = 2**30
"""Least space that stays free on the disk: other programs write there too."""
LONGEST_WAIT_S = 600.0
"""Another process that downloads a copy is waited for as long as this; then this one reads for itself."""
FORGOTTEN_AFTER_S = 3 * 86400.0
"""Copies that nothing has used for so long belong to runs that have ended or moved."""
ABANDONED_S = 3600.0
"""An unfinished copy that nothing has been written to for so long is that of a killed process."""
_reading = threading.BoundedSemaphore(max(1, (os.cpu_count() or 1) // 2))
"""Reading and hashing copies is bound by the processor. At a start the import of torch runs beside it, for which
everything waits, so half of the processors stay free."""
_NAME = re.compile(rf"[0-9a-f]{{{INTEGRITY_DIGITS}}}")


def node_folder(configured: str) -> Path:
    """The folder for copies on this node.

    Args:
        configured: `data.cache_folder`; empty = one below the temporary folder.
    """
    return local_path(configured) if configured else Path(tempfile.gettempdir()) / "indextts-job-cache"


@dataclass(frozen=True, slots=True)
class Share:
    """The place of this process among those of the run on this node."""

    index: int = 0
    count: int = 1


class NodeCache:
    """The copies of one run, or of one kind of input."""

    def __init__(self, folder: Path, name: str, free_ratio: float = 0.0, share: Share = Share()) -> None:
        """Without touching the disk yet.

        Args:
            folder: The folder for copies of everything on this node; other users may write there.
            name: Letters and digits; copies of another name are apart.
            free_ratio: Share of the disk that stays free.
            share: This process among the others, which begin to read at other places.
        """
        self.share = share
        self._users = users_folder(folder)
        self._folder = self._users / name
        self._free_ratio = free_ratio
        self._own: bool | None = None
        self._full = False

    def read(self, name: str, size_bytes: int) -> Bytes | None:
        """A copy, compared with its hash; None if there is none.

        Args:
            name: xxh3-128 of the content.
            size_bytes: Its size.
        """
        path = self._path(name)
        if path is None:
            return None
        with _reading:
            try:
                with own_file(path) as file:
                    content = np.fromfile(file, np.uint8, count=size_bytes + 1)
            except (OSError, MemoryError):
                return None
            if len(content) == size_bytes and integrity_hash(content.data) == name:
                _touch(path)
                return content
        self._remove(path)
        return None

    def write(self, name: str, content: Buffer) -> None:
        """Keep a copy, if there is space for it.

        Args:
            name: xxh3-128 of the content.
            content: The bytes.
        """
        if _NAME.fullmatch(name):
            self._write(name, content)

    def _write(self, name: str, content: Buffer) -> None:
        folder = self._own_folder()
        if folder is None or self._full or (folder / name).exists():
            return
        path = folder / name
        temporary = path.with_name(f".{uuid.uuid4().hex}.part")
        try:
            self._demand_space(len(content))
            # Not fsynced: a copy that a loss of power has cut off is noticed when it is read.
            temporary.write_bytes(content)
            temporary.rename(path)
        except OSError as error:
            self._full = True
            _tell(error)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def file(self, version: str, size_bytes: int, fetch: "Fetch") -> Path | Bytes | None:
        """A file by its copy, compared with its hash.

        Args:
            version: Identifies the file and its version: hexadecimal digits.
            size_bytes: Its size.
            fetch: Reads it from where it comes from.

        Returns:
            The copy; the content, if it was fetched and its copy is being written; None where there can be no copy.
        """
        found = self._file(version, size_bytes)
        if found or self._own_folder() is None:
            return found
        with self.only_one(version):
            found = self._file(version, size_bytes)
            if found or not self._has_space(size_bytes):
                return found
            content = fetch()

            def write() -> None:
                self._write(f"{version}-{integrity_hash(content.data)}", content.data)

            def write_later() -> None:
                give_way()
                write()

            # Other processes of the node wait for the copy. Without them nothing does.
            if self.share.count > 1:
                write()
            else:
                begin(write_later, "copy")
            return content

    def _file(self, version: str, size_bytes: int) -> Path | None:
        folder = self._own_folder()
        for path in folder.glob(f"{version}-*") if folder else ():
            with contextlib.suppress(OSError, ValueError), own_file(path) as file:
                # Mapped, so that the file is not in memory twice.
                content = np.memmap(file, np.uint8, mode="r")
                if len(content) == size_bytes and integrity_hash(content.data) == path.name.rpartition("-")[2]:
                    _touch(path)
                    # Not by its path: another user who owns the folder above could put another file there. The
                    # descriptor stays open as long as the process.
                    return Path(f"/proc/self/fd/{os.dup(file.fileno())}")
            self._remove(path)
        return None

    def _has_space(self, size_bytes: int) -> bool:
        try:
            self._demand_space(size_bytes)
        except OSError as error:
            _tell(error)
            return False
        return True

    @contextlib.contextmanager
    def only_one(self, name: str) -> Iterator[None]:
        """Inside, no other process of this node is inside for the same name; the kernel lets go if a process ends.

        Args:
            name: Hexadecimal digits.
        """
        folder = self._own_folder()
        if folder is None:
            yield
            return
        descriptor = None
        try:
            with contextlib.suppress(OSError):
                # By the first digits: a file for each name would stay behind. Who waits for another name waits in vain,
                # and not for long.
                descriptor = os.open(folder / f".{name[:2]}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
                _wait_for(descriptor)
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def keep_only(self, wanted: Container[str]) -> None:
        """Remove copies that are not wanted any more, and what killed processes have left.

        Args:
            wanted: Names of those that stay.
        """
        folder = self._own_folder()
        if folder is None or self.share.index:  # one process of the node is enough
            return
        with contextlib.suppress(OSError):
            # A young part may be one that another rank is writing at this moment.
            oldest_s = time.time() - ABANDONED_S
            for path in folder.iterdir():
                unwanted = _NAME.fullmatch(path.name) and path.name not in wanted
                if unwanted or (path.suffix == ".part" and path.stat().st_mtime < oldest_s):
                    self._remove(path)

    def forget_the_old(self) -> None:
        """Remove all copies of this user that nothing has read or written for days."""
        if self._own_folder() is None:
            return
        oldest_s = time.time() - FORGOTTEN_AFTER_S
        with contextlib.suppress(OSError):
            # Not the shards beside them: downloads evict those where space is needed.
            for path in (*self._users.glob("run*/*"), *self._users.glob("inputs/*")):
                with contextlib.suppress(OSError):
                    if path.stat().st_mtime < oldest_s:
                        path.unlink()

    def _path(self, name: str) -> Path | None:
        folder = self._own_folder()
        return folder / name if folder is not None and _NAME.fullmatch(name) else None

    def _own_folder(self) -> Path | None:
        """The folder, made when it is missing; None if it is not this user's alone."""
        if self._own is None:
            try:
                for folder in (self._users, self._folder):
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                    _demand_own(folder)
                self._own = True
            except OSError as error:
                self._own = False
                _tell(error)
        return self._folder if self._own else None

    def _demand_space(self, size_bytes: int) -> None:
        usage = shutil.disk_usage(self._folder)
        spare_bytes = max(SPARE_BYTES, self._free_ratio * usage.total)
        if usage.free < size_bytes + spare_bytes:
            raise OSError(errno.ENOSPC, f"less than {spare_bytes / 1e9:.1f} GB would be left on {self._folder}")

    def _remove(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def own_file(path: Path) -> BinaryIO:
    """Open a copy that this user has made. Nobody else can make a file that belongs to this user.

    Raises:
        OSError: It is not there, a link, or another user's.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
    status = os.fstat(file.fileno())
    if status.st_uid != os.getuid() or not stat.S_ISREG(status.st_mode):
        file.close()
        raise PermissionError(errno.EPERM, f"{path} is another user's, or no file")
    return file


def users_folder(folder: Path) -> Path:
    """The folder of this user among the copies of all."""
    return folder / f"user-{os.getuid()}"


def shard_folder(configured: str) -> Path:
    """The folder for copies of shards.

    In that of this user: somebody else could put other bytes there whose rows have the same fast hashes.

    Args:
        configured: As for `node_folder`.
    """
    return users_folder(node_folder(configured)) / "shards"


def _touch(path: Path) -> None:
    """Note the use of a copy, for `forget_the_old`."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _demand_own(folder: Path) -> None:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(errno.EPERM, f"{folder} is not this user's alone")


def _tell(error: OSError) -> None:
    logger.info("no further copies on this node (%s); what they would save is read from the bucket.", error)


def _wait_for(descriptor: int) -> None:
    waited_s = 0.0
    while waited_s < LONGEST_WAIT_S:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pause(LOOK_S)
            waited_s += LOOK_S
        else:
            return


class Copier:
    """Writes copies in a thread, so that a slow or hanging disk costs copies and no save.

    The memory that it is given may change before it is written. Such a copy does not have the hash that it is named by,
    and is not used.
    """

    def __init__(self, cache: NodeCache) -> None:
        self._cache = cache
        self._waiting: deque[tuple[str, Buffer]] = deque()
        self._busy = threading.Event()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, name: str, content: Buffer) -> None:
        """Have a copy written soon.

        Args:
            name: xxh3-128 of the content.
            content: The bytes.
        """
        with self._changed:
            self._waiting.append((name, content))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="copies", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def clear(self) -> None:
        """Give up what is not written yet."""
        with self._changed:
            self._waiting.clear()
            self._changed.notify_all()

    def wait(self, limit_s: float) -> None:
        """Wait until all are written, for a while."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._busy.is_set(), limit_s)

    def _run(self) -> None:
        give_way()
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait(timeout=LOOK_S)
                name, content = self._waiting.popleft()
                self._busy.set()
            self._cache.write(name, content)
            with self._changed:
                self._busy.clear()
                self._changed.notify_all()


Fetch = Callable[[], Bytes]
"""Reads the content from where it comes from."""


def through(cache: NodeCache | None, name: str, size_bytes: int, fetch: Fetch) -> Bytes:
    """Content by its hash: from this node, or fetched and kept.

    Args:
        cache: The copies; None = there are none.
        name: xxh3-128 of the content.
        size_bytes: Its size.
        fetch: Reads it from its source, compared with its hash.
    """
    if cache is None:
        return fetch()
    found = cache.read(name, size_bytes)
    if found is not None:
        return found
    # Another process of this node may be reading it at this moment.
    with cache.only_one(name):
        found = cache.read(name, size_bytes)
        if found is None:
            found = fetch()
            cache.write(name, found.data)
        return found
