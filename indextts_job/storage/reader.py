"""Reads bytes of remote files: as ranges, with retries, and in parallel where files are large."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from indextts_job.storage.errors import patiently
from indextts_job.storage.remote_files import PARALLEL, PART_BYTES, Bytes, RemoteFileSystem
from indextts_job.waiting import pause


class RemoteReader:
    """Reads the files below one URL. Its threads are started when they are first needed."""

    def __init__(self, url: str, patience_s: float, sleep: Callable[[float], object] = pause) -> None:
        """Open the URL; sends no request yet.

        Args:
            url: A folder, or one file.
            patience_s: How long each request is retried.
            sleep: Waits between two tries.

        Raises:
            ConfigError: The URL may not be opened.
        """
        self._url = url.rstrip("/")
        self._patience_s = patience_s
        self._sleep = sleep
        self.filesystem, self.root = RemoteFileSystem.of(self._url)
        self._pool: ThreadPoolExecutor | None = None

    def read_range(self, start: int, stop: int, name: str = "") -> bytes:
        """Bytes [start, stop) of a file; fewer where the file ends before.

        Args:
            start: First byte.
            stop: Byte behind the last one.
            name: Name of the file below the URL; empty = the URL is the file.

        Raises:
            FileNotFoundError: It is not there.
            IndexTTSJobError: It cannot be read, as `errors.translated` says.
        """
        path = f"{self.root}/{name}" if name else self.root
        return patiently(
            f"reading {self._url}/{name}" if name else f"reading {self._url}",
            lambda: self.filesystem.read_range(path, start, stop),
            self._patience_s,
            sleep=self._sleep,
        )

    def read_sized(self, size_bytes: int, name: str = "") -> Bytes:
        """A file whose size is known, in parts that are requested in parallel; shorter where the file is shorter.

        Args:
            size_bytes: Expected size.
            name: As in `read_range`.
        """
        # Parts are read to their places, so the file is in memory once. `empty` does not touch the pages beforehand.
        content = np.empty(size_bytes, np.uint8)
        path = f"{self.root}/{name}" if name else self.root

        def place(start: int) -> int:
            return patiently(
                f"reading {self._url}/{name}" if name else f"reading {self._url}",
                lambda: self.filesystem.read_into(path, start, content[start : start + PART_BYTES].data),
                self._patience_s,
                sleep=self._sleep,
            )

        starts = range(0, size_bytes, PART_BYTES)
        if len(starts) == 1:
            received = place(0)  # most files are smaller than a part; a thread would only cost time
        else:
            if self._pool is None:
                # Kept: a checkpoint has hundreds of objects, and each would start and end its own threads.
                self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="parts")
            # A file that has become shorter gives fewer bytes; callers compare the size and call it damaged.
            received = sum(self._pool.map(place, starts))
        return content[:received]
