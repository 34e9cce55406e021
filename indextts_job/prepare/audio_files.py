"""What is known of audio files without opening them: where they lie, and which version of them is there.

A local file is looked at, a bucket is listed once for each folder. A web server lists nothing, so what its files are is
known by opening them alone.
"""

import os
import stat
import threading
from functools import lru_cache

from indextts_job.errors import AccessRefusedError, ConfigError
from indextts_job.redaction import redacted
from indextts_job.storage import files
from indextts_job.storage.urls import absolute, file_path, is_local

MISSING = ""
"""The version of a file that is not there, or that nobody may read."""


def place_of(url: str) -> str:
    """Where a file lies: local links followed, and without the query that signs a link, which is another each time."""
    if not is_local(url):
        return redacted(file_path(url))
    folder, slash, name = url.rpartition("/")
    return f"{_folder(folder + slash)}/{name}"


@lru_cache(maxsize=4096)
def _folder(url: str) -> str:
    return absolute(url or ".").rstrip("/")


class AudioFiles:
    """The versions of audio files; each folder of a bucket is listed once. Any thread may ask."""

    def __init__(self) -> None:
        self._listed: dict[str, dict[str, str] | None] = {}
        self._lock = threading.Lock()

    def version(self, url: str) -> str | None:
        """Size and time or hash of a file; `MISSING` if it is not there, None if that is known by opening it alone.

        Raises:
            UnavailableError: The storage cannot be reached.
        """
        if is_local(url):
            return _local_version(url)
        if url.startswith(("http://", "https://")):
            return None
        folder, _, name = url.rpartition("/")
        with self._lock:
            if folder not in self._listed:
                self._listed[folder] = _listed(folder)
        there = self._listed[folder]
        return None if there is None else there.get(name, MISSING)

    def is_there(self, url: str) -> bool:
        """Whether a file is there and may be read. A bucket lists objects that it denies."""
        found = self.version(url)
        if found is None:
            return files.exists(url)
        return found != MISSING and (is_local(url) or files.may_be_read(url))


def _listed(folder: str) -> dict[str, str] | None:
    try:
        return files.versions(folder)
    except AccessRefusedError:  # some keys may read objects and not list them
        return None


def _local_version(url: str) -> str | None:
    try:
        path = files.local_path(url)
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ConfigError):
        return MISSING
    except OSError:  # whoever opens it says what is wrong
        return None
    readable = stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK)
    return f"{status.st_size} {status.st_mtime_ns}" if readable else MISSING
