"""Files of a run, on any fsspec file system: written whole or not at all, durable before visible (I4).

On local disks a file is written under a temporary name, fsynced, renamed, and its folder fsynced. Elsewhere one
`pipe_file` call is one atomic put; files opened for writing are not, a failing `with` block would leave a truncated
object visible.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec

from indextts_job import files
from indextts_job.errors import AccessRefusedError, ConfigError, UnavailableError

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

    def write(self, key: str, content: bytes) -> None:
        """Make a file visible with this content, all or nothing, durably."""

    def create(self, key: str, content: bytes) -> None:
        """Like `write`, but FileExistsError when the key is taken; of several racing creators one succeeds."""

    def append(self, key: str, content: bytes) -> None:
        """Add to a log. Not durable, for records that may be lost."""

    def list(self, folder: str) -> dict[str, StoredFile]:
        """Files directly in a folder by name, temporary ones left out; empty when the folder is not there."""

    def delete(self, key: str) -> None:
        """Remove a file; no error when it is gone."""

    def remove_temporary(self, folder: str, older_than_s: float) -> None:
        """Remove what killed writers left behind."""


def open_storage(url: str) -> RunStorage:
    """The storage of a run.

    Raises:
        ConfigError: No file system of this kind is installed.
    """
    if files.is_local(url):
        return LocalStorage(url)
    return FsspecStorage(url)


@contextlib.contextmanager
def _translated(what: str, *, writing: bool = False) -> Iterator[None]:
    """Failures of a file system as errors a user can act on; "exists", and "not found" of a read, pass through."""
    try:
        yield
    except FileNotFoundError as error:
        if not writing:
            raise
        raise ConfigError(f"{what} failed ({error}). The folder cannot be made; choose another run folder.") from error
    except FileExistsError:
        raise
    except PermissionError as error:
        raise AccessRefusedError(f"{what} was refused ({error}). Check credentials and permissions.") from error
    except NotADirectoryError as error:
        raise ConfigError(
            f"{what} failed ({error}). The path runs through a file; choose another run folder."
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UnavailableError(
                f"{what} failed: no space is left ({error}). Free some; committed checkpoints are intact."
            ) from error
        raise UnavailableError(
            f"{what} failed ({error}). Check the storage; committed checkpoints are intact."
        ) from error


class LocalStorage:
    """A run in a local folder."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._root = files.local_path(url)

    def read(self, key: str) -> bytes:
        """See `RunStorage`."""
        with _translated(f"reading {self._root / key}"):
            return (self._root / key).read_bytes()

    def write(self, key: str, content: bytes) -> None:
        """See `RunStorage`."""
        with _translated(f"writing {self._root / key}", writing=True), self._temporary(key, content) as temporary:
            temporary.replace(self._root / key)
            _fsync_folder((self._root / key).parent)

    def create(self, key: str, content: bytes) -> None:
        """See `RunStorage`."""
        path = self._root / key
        with _translated(f"creating {path}", writing=True), self._temporary(key, content) as temporary:
            # A hard link appears with all its content and fails when the name is taken; a look first would race.
            os.link(temporary, path)
            _fsync_folder(path.parent)

    def append(self, key: str, content: bytes) -> None:
        """See `RunStorage`."""
        path = self._root / key
        with _translated(f"appending to {path}", writing=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(content)

    def list(self, folder: str) -> dict[str, StoredFile]:
        """See `RunStorage`."""
        now = time.time()
        found = {}
        with _translated(f"listing {self._root / folder}"), contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self._root / folder):
                if entry.is_file() and not entry.name.startswith(TEMPORARY_PREFIX):
                    status = entry.stat()
                    found[entry.name] = StoredFile(status.st_size, max(0.0, now - status.st_mtime))
        return found

    def delete(self, key: str) -> None:
        """See `RunStorage`."""
        with _translated(f"deleting {self._root / key}"):
            (self._root / key).unlink(missing_ok=True)

    def remove_temporary(self, folder: str, older_than_s: float) -> None:
        """See `RunStorage`."""
        oldest = time.time() - older_than_s
        with _translated(f"cleaning {self._root / folder}"):
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


class FsspecStorage:
    """A run in an object store or another remote file system."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{url}: {error}. Install the fsspec package of this kind of storage.") from error

    def read(self, key: str) -> bytes:
        """See `RunStorage`."""
        with _translated(f"reading {self.url}/{key}"):
            content: bytes = self._fs.cat_file(self._path(key))
        return content

    def write(self, key: str, content: bytes) -> None:
        """See `RunStorage`."""
        with _translated(f"writing {self.url}/{key}", writing=True):
            self._make_folder(key)
            self._fs.pipe_file(self._path(key), content)

    def create(self, key: str, content: bytes) -> None:
        """See `RunStorage`."""
        with _translated(f"creating {self.url}/{key}", writing=True):
            self._make_folder(key)
            self._fs.pipe_file(self._path(key), content, mode="create")

    def append(self, key: str, content: bytes) -> None:
        """See `RunStorage`."""
        with _translated(f"appending to {self.url}/{key}", writing=True):
            self._make_folder(key)
            with self._fs.open(self._path(key), "ab") as file:
                file.write(content)

    def list(self, folder: str) -> dict[str, StoredFile]:
        """See `RunStorage`."""
        found: dict[str, StoredFile] = {}
        with _translated(f"listing {self.url}/{folder}"), contextlib.suppress(FileNotFoundError):
            self._fs.invalidate_cache()
            for entry in self._fs.ls(self._path(folder), detail=True):
                if entry["type"] == "file":
                    name = entry["name"].rpartition("/")[2]
                    found[name] = StoredFile(int(entry["size"]), _age_s(entry))
        return found

    def delete(self, key: str) -> None:
        """See `RunStorage`."""
        with _translated(f"deleting {self.url}/{key}"), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(key))

    def remove_temporary(self, folder: str, older_than_s: float) -> None:
        """See `RunStorage`: a put leaves nothing behind."""

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _make_folder(self, key: str) -> None:
        # Some file systems have real folders (memory, ssh); on object stores this is a no-op.
        self._fs.makedirs(self._path(key).rpartition("/")[0], exist_ok=True)


def _age_s(entry: dict[str, Any]) -> float:
    written = entry.get("LastModified") or entry.get("created") or entry.get("mtime")
    if written is None:
        return 0.0
    instant = written if isinstance(written, (int, float)) else written.timestamp()
    return max(0.0, time.time() - float(instant))
