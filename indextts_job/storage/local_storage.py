"""A run in a local folder.

A file is written under a temporary name and fsynced; then it is renamed, and its folder is fsynced. A kill or a loss of
power leaves the whole file or none (I4).
"""

import contextlib
import errno
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from indextts_job.errors import ConfigError
from indextts_job.hashing import Buffer
from indextts_job.storage import files
from indextts_job.storage.errors import translated
from indextts_job.storage.remote_files import Bytes
from indextts_job.storage.run_storage import StoredFile, safe_key

TEMPORARY_PREFIX = ".tmp-"
_NOT_SUPPORTED = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK, errno.EBADF)
"""Errors with which file systems (FUSE, exFAT, SMB) refuse hard links, or the fsync of a folder."""

logger = logging.getLogger(__name__)


class LocalStorage:
    """A run in a local folder."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._root = files.local_path(url)
        self._appended: set[Path] = set()
        self._warned: set[str] = set()

    def _path(self, key: str) -> Path:
        return self._root / safe_key(key)

    def read(self, key: str) -> bytes:
        """See `RunStorage`."""
        with translated(f"reading {self._path(key)}"):
            return self._path(key).read_bytes()

    def read_large(self, key: str, size_bytes: int) -> Bytes:
        """See `RunStorage`."""
        with translated(f"reading {self._path(key)}"):
            # One byte more than expected: a longer file must not pass as a whole one.
            return np.fromfile(self._path(key), np.uint8, count=size_bytes + 1)

    def write(self, key: str, content: Buffer) -> None:
        """See `RunStorage`."""
        path = self._path(key)
        with translated(f"writing {path}", writing=True), self._temporary(path, content) as temporary:
            try:
                # `rename` within a folder is atomic: readers see the old file or the new one.
                temporary.replace(path)
            except IsADirectoryError as error:
                raise ConfigError(f"{path} is a folder where the run needs a file. Move it away.") from error
            self._fsync_folder(path.parent)

    def create(self, key: str, content: bytes) -> None:
        """See `RunStorage`."""
        path = self._path(key)
        with translated(f"creating {path}", writing=True), self._temporary(path, content) as temporary:
            try:
                # A hard link appears with its whole content and fails when the name is taken. Looking first and then
                # renaming would race with another creator.
                os.link(temporary, path)
            except OSError as error:
                # FileExistsError has EEXIST and is raised here: the key is taken.
                if error.errno not in _NOT_SUPPORTED:
                    raise
                self._warn("has no hard links: a kill while a file is created may leave it empty", error)
                _create_exclusively(path, content)
            self._fsync_folder(path.parent)

    def excludes_creators(self) -> bool:
        """See `RunStorage`. Both a hard link and an exclusive open fail when the name is taken."""
        return True

    def append(self, key: str, content: bytes) -> None:
        """See `RunStorage`."""
        path = self._path(key)
        with translated(f"appending to {path}", writing=True):
            self._make_folders(path.parent)
            with path.open("ab") as file:
                file.write(content)
            # An fsync after every event would hold the training back; `flush` does it before each commit.
            self._appended.add(path)

    def list(self, folder: str) -> dict[str, StoredFile]:
        """See `RunStorage`."""
        now = time.time()
        found = {}
        with translated(f"listing {self._root / folder}"), contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self._path(folder)):
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    if entry.is_file() and not entry.name.startswith(TEMPORARY_PREFIX):
                        status = entry.stat()
                        found[entry.name] = StoredFile(status.st_size, max(0.0, now - status.st_mtime))
        return found

    def delete(self, key: str) -> None:
        """See `RunStorage`."""
        with translated(f"deleting {self._path(key)}"):
            self._path(key).unlink(missing_ok=True)

    def folders(self, folder: str) -> Sequence[str]:
        """See `RunStorage`."""
        with translated(f"listing {self._root / folder}"), contextlib.suppress(FileNotFoundError):
            return sorted(entry.name for entry in os.scandir(self._path(folder)) if entry.is_dir())
        return []

    def remove_empty_folders(self) -> None:
        """See `RunStorage`."""
        # The deepest first: a folder is empty when those in it are gone.
        for path in (*sorted(self._root.rglob("*/"), reverse=True), self._root):
            with contextlib.suppress(OSError):  # not empty, or gone
                path.rmdir()

    def flush(self, *, patient: bool = False) -> None:
        """See `RunStorage`. Appended content is visible at once, and durable after this."""
        del patient  # a local disk does not come back within seconds
        while self._appended:
            path = self._appended.pop()
            try:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                self._fsync_folder(path.parent)
            except OSError as error:
                # A log that is lost with the power costs less than a training that stops because of it.
                logger.warning("%s may not survive a loss of power: %s", path, error)

    def remove_temporary(self, folder: str, older_than_s: float) -> None:
        """See `RunStorage`."""
        oldest = time.time() - older_than_s
        with translated(f"cleaning {self._root / folder}"):
            for path in self._path(folder).glob(f"{TEMPORARY_PREFIX}*"):
                with contextlib.suppress(FileNotFoundError):
                    # A young one may belong to a writer that is at work at this moment.
                    if path.stat().st_mtime < oldest:
                        path.unlink()

    @contextlib.contextmanager
    def _temporary(self, path: Path, content: Buffer) -> Iterator[Path]:
        """A durable temporary file in the folder of the final name; removed at the end unless it was renamed."""
        self._make_folders(path.parent)
        # Containers that share a folder all have process number 1, so the process number alone is not unique.
        owner = f"{socket.gethostname()[:32]}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        temporary = path.parent / f"{TEMPORARY_PREFIX}{owner}"
        try:
            # In the same folder: a rename between file systems is a copy, and no longer atomic.
            with temporary.open("xb") as file:
                file.write(content)
                # Before the rename: after a loss of power the name may be there and its content not.
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _make_folders(self, folder: Path) -> None:
        """Create a folder and make its name durable in every parent that was created too.

        Raises:
            ConfigError: Something else has its name.
        """
        # Collected before they are made: afterwards nobody can tell which of them are new.
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise ConfigError(
                f"{error.filename} is no folder: a file, or a link that leads nowhere. Remove it; the run needs a "
                "folder there."
            ) from error
        for path in missing:
            self._fsync_folder(path.parent)

    def _fsync_folder(self, folder: Path) -> None:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            # Without it the commit is complete for every reader; only a loss of power can undo it.
            if error.errno not in (*_NOT_SUPPORTED, errno.EACCES, errno.EISDIR):
                raise
            self._warn("cannot fsync a folder: a loss of power may undo the last commit", error)

    def _warn(self, what: str, error: OSError) -> None:
        # Once: every write of the run would repeat it.
        if what not in self._warned:
            self._warned.add(what)
            logger.warning("the file system of %s %s (%s).", self._root, what, error.strerror)


def _create_exclusively(path: Path, content: bytes) -> None:
    """Create a file that nobody else has created, and remove it when it cannot be written."""
    with path.open("xb") as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise
