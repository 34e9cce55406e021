"""Remote file systems through fsspec, every call bounded in time, and large files as parallel ranged requests.

Each call has a bound of its own, because the S3 client's timeout does not cover every hang: aiohttp 3.14 does not apply
it on a kept-alive connection whose server takes a body and never answers. One such call would stop a run for good.

fsspec's request for a whole file asks for the size first and reads one stream. Ranges of a file of known size save both
and are twice as fast on one endpoint (`bench/checkpoint.py`).
"""

from typing import Any, Self

import fsspec
import numpy as np
import numpy.typing as npt

from indextts_job.errors import ConfigError
from indextts_job.hashing import Buffer
from indextts_job.redaction import redacted
from indextts_job.storage import patience
from indextts_job.storage.bulk_transfers import BulkTransfers
from indextts_job.storage.urls import demand_openable

Bytes = npt.NDArray[np.uint8]
PART_BYTES = 8 * 2**20
"""Size of one request: large enough that its latency does not matter, small enough that a failure costs little."""
PARALLEL = 16
"""Requests at a time."""
CALL_TIMEOUT_S = 75.0
"""A call that moves little data has failed after this. Longer than the client's own timeouts (10 s and 60 s), so that
its more specific errors come first."""
LEAST_TIMEOUT_S = 10.0
"""A call has at least this long, even close to the deadline of its operation: shorter ones would fail in vain."""
SLOWEST_BYTES_PER_S = 500e3
"""Slowest rate that counts as working: a call may take its bytes divided by this in addition."""


class RemoteFileSystem:
    """The few calls that we make of an fsspec file system; they raise what fsspec raises."""

    def __init__(self, filesystem: Any) -> None:  # noqa: ANN401  # fsspec ships no types
        self.fsspec = filesystem
        self._bulk = BulkTransfers.of(filesystem)

    @classmethod
    def of(cls, url: str) -> tuple[Self, str]:
        """The file system of a URL, and the path in it. Only here are URLs opened, so the checks cannot be passed by.

        Raises:
            ConfigError: The URL may not be opened, or no file system of its kind is installed.
        """
        protocol = demand_openable(url)
        try:
            # Not fsspec.url_to_fs, which also opens chains of file systems; some of those run code from the file.
            kind = fsspec.get_filesystem_class(protocol)
            filesystem = kind(**kind._get_kwargs_from_urls(url))
        except ImportError as error:
            raise ConfigError(
                f"{redacted(url)}: {error}. Install the fsspec package of this kind of storage."
            ) from error
        except ValueError as error:
            raise ConfigError(
                f"{redacted(url)}: {redacted(str(error))}. Check the URL and the storage's settings."
            ) from error
        return cls(filesystem), str(kind._strip_protocol(url))

    def call(self, method: str, *arguments: object, size_bytes: int = 0, **named: object) -> Any:  # noqa: ANN401
        """Any method of the file system.

        Args:
            method: Name of the method.
            arguments: Its positional arguments.
            size_bytes: About how many bytes it moves; extends the timeout.
            named: Its keyword arguments.
        """
        # Asynchronous file systems run in a thread of fsspec, which can stop waiting. The others know no timeout.
        if self.fsspec.async_impl:
            named["timeout"] = _timeout_s(size_bytes)
        return getattr(self.fsspec, method)(*arguments, **named)

    def read(self, path: str) -> bytes:
        """A whole file."""
        return bytes(self.call("cat_file", path, size_bytes=PART_BYTES))

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file; fewer when it ends before."""
        try:
            return bytes(self.call("cat_file", path, start=start, end=stop, size_bytes=stop - start))
        except OSError as error:
            # For a range behind the end S3 answers 416, where other stores answer with no bytes.
            answer = getattr(error.__cause__, "response", None) or {}
            if answer.get("ResponseMetadata", {}).get("HTTPStatusCode") == 416:
                return b""
            raise

    def read_into(self, path: str, start: int, place: memoryview) -> int:
        """Read a range to its place.

        Args:
            path: The file.
            start: First byte of the range, which is as long as the place.
            place: Where to.

        Returns:
            Number of bytes; fewer when the file ends before.
        """
        if self._bulk and self._bulk.read_into(path, start, place, _timeout_s(len(place))):
            return len(place)
        content = self.read_range(path, start, start + len(place))
        place[: len(content)] = content
        return len(content)

    def write(self, path: str, content: Buffer, mode: str = "overwrite") -> None:
        """Put a whole file.

        Raises:
            ConfigError: The place is on a web server. fsspec would send it a PUT request.
        """
        if "http" in self.fsspec.protocol:
            raise ConfigError("http:// and https:// are for reading only. Give a folder or a bucket to write to.")
        # Only `memory` has real folders. For S3 this would ask for the bucket before every put, and make a bucket whose
        # name was mistyped.
        if "memory" in self.fsspec.protocol:
            self.call("makedirs", path.rpartition("/")[0], exist_ok=True)
        if self._bulk and mode == "overwrite" and self._bulk.put(path, content, _timeout_s(len(content))):
            return
        # fsspec's clients of object stores take bytes only.
        content = content if isinstance(content, bytes) else bytes(content)
        # Never `open` for writing: a `with` block that fails midway would commit the truncated object.
        self.call("pipe_file", path, content, mode=mode, size_bytes=len(content))

    def list(self, folder: str) -> list[dict[str, Any]]:
        """Entries directly in a folder, from a new request."""
        # Some file systems keep a cache whatever the options say; other processes write into the folder.
        self.fsspec.invalidate_cache(folder)
        entries: list[dict[str, Any]] = self.call("ls", folder, detail=True)
        return entries

    def info(self, path: str) -> dict[str, Any]:
        """Size and version of a file."""
        entry: dict[str, Any] = self.call("info", path)
        return entry

    def exists(self, path: str) -> bool:
        """Whether a file or folder exists."""
        return bool(self.call("exists", path))

    def remove(self, path: str) -> None:
        """Remove a file."""
        self.call("rm_file", path)


def _timeout_s(size_bytes: int) -> float:
    """Limit for a call that moves about so many bytes."""
    most_s = min(CALL_TIMEOUT_S, max(LEAST_TIMEOUT_S, patience.seconds_left()))
    return most_s + size_bytes / SLOWEST_BYTES_PER_S
