"""The verbs that a run needs of its storage, and how local disks give them (I4).

A file is written whole or not at all, and durable before visible: under a temporary name, fsynced, renamed, and its
folder fsynced.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from indextts_job import files
from indextts_job.remote_files import Bytes
from indextts_job.storage_errors import translated

TEMPORARY_PREFIX = ".tmp-"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a run."""

    size_bytes: int
    age_s: float
    """Seconds since it was written, 0 where the storage does not tell."""


class RunStorage(Protocol):
    """The verbs that a run needs. Keys are relative to the run and use `/`."""

    url: str

    def read(self, key: str) -> bytes:
        """A whole file; FileNotFoundError when it is not there."""

    def read_large(self, key: str, size_bytes: int) -> Bytes:
        """Like `read`, for a file whose size is known: parallel, one copy; shorter when the file is shorter."""

    def write(self, key: str, content: bytes) -> None:
        """Make a file visible with this content, all or nothing, durably."""

    def create(self, key: str, content: bytes) -> None:
        """Like `write`, but FileExistsError when the key is taken; of several racing creators one succeeds."""

    def excludes_creators(self) -> bool:
        """Whether `create` really refuses a taken key; some object stores ignore the condition without a word."""

    def append(self, key: str, content: bytes) -> None:
        """Add to a log. Not durable, for records that may be lost."""

    def list(self, folder: str) -> dict[str, StoredFile]:
        """Files directly in a folder by name, temporary ones left out; empty when the folder is not there."""

    def delete(self, key: str) -> None:
        """Remove a file; no error when it is gone."""

    def flush(self) -> None:
        """Make what was appended visible."""

    def remove_temporary(self, folder: str, older_than_s: float) -> None:
        """Remove what killed writers left behind."""


class LocalStorage:
    """A run in a local folder."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._root = files.local_path(url)

    def read(self, key: str) -> bytes:
        """See `RunStorage`."""
        with translated(f"reading {self._root / key}"):
            return (self._root / key).read_bytes()

    def read_large(self, key: str, size_bytes: int) -> Bytes:
        """See `RunStorage`."""
        del size_bytes
        with translated(f"reading {self._root / key}"):
            return np.fromfile(self._root / key, np.uint8)

    def write(self, key: str, content: bytes) -> None:
        """See `RunStorage`."""
        with translated(f"writing {self._root / key}", writing=True), self._temporary(key, content) as temporary:
            temporary.replace(self._root / key)
            _fsync_folder((self._root / key).parent)

    def create(self, key: str, content: bytes) -> None:
        """See `RunStorage`."""
        path = self._root / key
        with translated(f"creating {path}", writing=True), self._temporary(key, content) as temporary:
            # A hard link appears with all its content and fails when the name is taken; a look first would race.
            os.link(temporary, path)
            _fsync_folder(path.parent)

    def excludes_creators(self) -> bool:
        """See `RunStorage`: a hard link does."""
        return True

    def append(self, key: str, content: bytes) -> None:
        """See `RunStorage`."""
        path = self._root / key
        with translated(f"appending to {path}", writing=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(content)

    def list(self, folder: str) -> dict[str, StoredFile]:
        """See `RunStorage`."""
        now = time.time()
        found = {}
        with translated(f"listing {self._root / folder}"), contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self._root / folder):
                if entry.is_file() and not entry.name.startswith(TEMPORARY_PREFIX):
                    status = entry.stat()
                    found[entry.name] = StoredFile(status.st_size, max(0.0, now - status.st_mtime))
        return found

    def delete(self, key: str) -> None:
        """See `RunStorage`."""
        with translated(f"deleting {self._root / key}"):
            (self._root / key).unlink(missing_ok=True)

    def flush(self) -> None:
        """See `RunStorage`: what is appended is visible at once."""

    def remove_temporary(self, folder: str, older_than_s: float) -> None:
        """See `RunStorage`."""
        oldest = time.time() - older_than_s
        with translated(f"cleaning {self._root / folder}"):
            for path in (self._root / folder).glob(f"{TEMPORARY_PREFIX}*"):
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime < oldest:
                        path.unlink()

    @contextlib.contextmanager
    def _temporary(self, key: str, content: bytes) -> Iterator[Path]:
        """A durable file beside the final name; gone at the end unless it was renamed."""
        path = self._root / key
        _make_folders(path.parent)
        temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}"
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def _make_folders(folder: Path) -> None:
    """Create a folder and make its name durable in every parent that was created too."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _fsync_folder(path.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
