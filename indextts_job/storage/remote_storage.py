"""A run in an object store or another remote file system, through fsspec.

One `pipe_file` call is one atomic put; files opened for writing are not used, because a `with` block that fails would
leave a truncated object visible. Every operation is retried for a while before it counts as failed. Object stores
cannot append, so logs are buffered here and written whole by a thread every few seconds.
"""

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from indextts_job.errors import AccessRefusedError, ConfigError, UnavailableError
from indextts_job.hashing import Buffer
from indextts_job.storage import files
from indextts_job.storage.config import StorageConfig
from indextts_job.storage.errors import patiently
from indextts_job.storage.local_storage import LocalStorage
from indextts_job.storage.reader import RemoteReader
from indextts_job.storage.remote_files import Bytes
from indextts_job.storage.run_storage import PROBES, RunStorage, StoredFile, safe_key
from indextts_job.waiting import pause

logger = logging.getLogger(__name__)
T = TypeVar("T")


def open_storage(url: str, config: StorageConfig | None = None) -> RunStorage:
    """The storage of a run.

    Args:
        url: Path or URL.
        config: How long remote operations are retried; defaults without it.

    Raises:
        ConfigError: No file system of this kind is installed.
    """
    return LocalStorage(url) if files.is_local(url) else RemoteStorage(url, config or StorageConfig())


class RemoteStorage:
    """See `RunStorage`."""

    def __init__(self, url: str, config: StorageConfig, sleep: Callable[[float], object] = pause) -> None:
        self.url = url.rstrip("/")
        self._config = config
        self._sleep = sleep
        self._logs = _BufferedLogs(self._put_log, config.log_interval_seconds)
        self._reader = RemoteReader(self.url, config.retry_seconds, sleep)
        self._filesystem, self._root = self._reader.filesystem, self._reader.root
        if hasattr(self._filesystem.fsspec, "retries"):
            # s3fs retries without a log line and without a bound in time; `errors.patiently` has both.
            self._filesystem.fsspec.retries = 2

    def read(self, key: str) -> bytes:
        """See `RunStorage`."""
        return self._tried("reading", key, self._filesystem.read)

    def read_large(self, key: str, size_bytes: int) -> Bytes:
        """See `RunStorage`."""
        return self._reader.read_sized(size_bytes, safe_key(key))

    def write(self, key: str, content: Buffer) -> None:
        """See `RunStorage`."""
        self._tried("writing", key, lambda path: self._filesystem.write(path, content))

    def create(self, key: str, content: bytes) -> None:
        """See `RunStorage`.

        Only for small files, which are one conditional put: of several conditional multipart uploads some stores let
        more than one win.
        """

        def put(path: str) -> None:
            try:
                self._filesystem.write(path, content, mode="create")
            except OSError:
                # s3fs reports a refused condition as a plain OSError, so the key is read to find out. Equal content is
                # this call's own: an earlier try arrived, and its answer was lost.
                taken = self._content(path)
                if taken is not None and taken != content:
                    raise FileExistsError(path) from None
                if taken is None:
                    raise

        self._tried("creating", key, put)

    def excludes_creators(self) -> bool:
        """See `RunStorage`. Found out by creating a key twice."""
        # A new key each time: one left behind by a killed probe would look like a refused condition.
        key = f"{PROBES}/{uuid.uuid4().hex}"
        self.create(key, b"first")
        try:
            self.create(key, b"second")
        except FileExistsError:
            return True
        else:
            return False
        finally:
            # A bucket that forbids deletion keeps a few bytes; everything else works.
            with contextlib.suppress(UnavailableError, AccessRefusedError):
                self.delete(key)

    def append(self, key: str, content: bytes) -> None:
        """See `RunStorage`. Visible after a few seconds, or after `flush`."""
        self._logs.append(key, content)

    def flush(self, *, patient: bool = False) -> None:
        """See `RunStorage`."""
        self._logs.flush(self._config.retry_seconds if patient else 0.0)

    def list(self, folder: str) -> dict[str, StoredFile]:
        """See `RunStorage`."""
        return self._tried("listing", folder, self._listed)

    def delete(self, key: str) -> None:
        """See `RunStorage`."""

        def remove(path: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.remove(path)

        self._tried("deleting", key, remove)

    def folders(self, folder: str) -> Sequence[str]:
        """See `RunStorage`."""

        def found(path: str) -> Sequence[str]:
            with contextlib.suppress(FileNotFoundError):
                entries = self._filesystem.list(path)
                names = (entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] != "file")
                return sorted(filter(None, names))
            return []

        return self._tried("listing", folder, found)

    def remove_empty_folders(self) -> None:
        """See `RunStorage`. What is a folder in a bucket is the beginning of a name."""

    def remove_temporary(self, folder: str, older_than_s: float) -> None:
        """See `RunStorage`. A put leaves nothing behind but unfinished multipart uploads, which are aborted here."""
        if hasattr(self._filesystem.fsspec, "list_multipart_uploads"):
            self._tried("aborting unfinished uploads below", folder, lambda path: self._abort_old(path, older_than_s))

    def _abort_old(self, path: str, older_than_s: float) -> None:
        bucket, _, prefix = path.partition("/")
        # Not `clear_multipart_uploads`: it aborts the uploads of everybody in the bucket, also those in progress.
        # Some servers answer "no such upload" where a bucket has none.
        uploads: Sequence[Mapping[str, Any]] = ()
        with contextlib.suppress(FileNotFoundError):
            uploads = self._filesystem.call("list_multipart_uploads", bucket)
        for upload in uploads:
            old = time.time() - upload["Initiated"].timestamp() > older_than_s
            if old and upload["Key"].startswith(f"{prefix}/"):
                named = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                self._filesystem.call("call_s3", "abort_multipart_upload", **named)

    def _put_log(self, key: str, content: bytes, limit_s: float) -> None:
        path = f"{self._root}/{safe_key(key)}"
        # With its own limit: the thread passes 0, because the next interval is its retry.
        patiently(f"writing {self.url}/{key}", lambda: self._filesystem.write(path, content), limit_s, writing=True)

    def _content(self, path: str) -> bytes | None:
        try:
            return self._filesystem.read(path)
        except FileNotFoundError:
            return None

    def _listed(self, path: str) -> dict[str, StoredFile]:
        found: dict[str, StoredFile] = {}
        with contextlib.suppress(FileNotFoundError):
            for entry in self._filesystem.list(path):
                name = entry["name"].rpartition("/")[2]
                if entry["type"] == "file" and name:  # some stores keep a nameless marker for the folder itself
                    found[name] = StoredFile(int(entry["size"]), _age_s(entry))
        return found

    def _tried(self, verb: str, key: str, operation: Callable[[str], T]) -> T:
        return patiently(
            f"{verb} {self.url}/{key}",
            lambda: operation(f"{self._root}/{safe_key(key)}"),
            self._config.retry_seconds,
            writing=verb in ("writing", "creating"),
            sleep=self._sleep,
        )


def _age_s(entry: dict[str, Any]) -> float:
    """Seconds since a file was written; 0 where unknown, so that nothing is removed as too old."""
    # Every fsspec file system has its own name for the instant.
    written = entry.get("LastModified") or entry.get("created") or entry.get("mtime")
    if written is None:
        return 0.0
    instant = written if isinstance(written, (int, float)) else written.timestamp()
    return max(0.0, time.time() - float(instant))


class _BufferedLogs:
    """Growing logs of one process, written whole by a thread. No other process writes the same keys."""

    def __init__(self, put: Callable[[str, bytes, float], None], interval_s: float) -> None:
        self._put = put
        self._interval_s = interval_s
        self._contents: dict[str, bytearray] = {}
        self._changed: set[str] = set()
        self._lock = threading.Lock()
        # A lock for the writes alone: `append` must not wait for the network.
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None

    def append(self, key: str, content: bytes) -> None:
        """Add to a log; starts the thread when there is something to write."""
        with self._lock:
            self._contents.setdefault(key, bytearray()).extend(content)
            self._changed.add(key)
            if self._thread is None:
                # A daemon thread does not hold up the exit; `flush` before each commit makes the log durable.
                self._thread = threading.Thread(target=self._run, name="logs", daemon=True)
                self._thread.start()

    def flush(self, limit_s: float = 0.0) -> None:
        """Write the logs that have changed. One that cannot be written is kept and written at the next flush.

        Args:
            limit_s: How long to retry now; 0 leaves it to the next interval.
        """
        with self._writing:
            with self._lock:
                # A copy under the lock: the logs grow while it is sent.
                due = {key: bytes(self._contents[key]) for key in self._changed}
                self._changed.clear()
            for key, content in due.items():
                try:
                    self._put(key, content, limit_s)
                except (UnavailableError, AccessRefusedError, ConfigError) as error:
                    # A log never ends a training. Where the storage stays away, the commit itself fails.
                    logger.warning("%s The log is kept and written later.", error)
                    with self._lock:
                        self._changed.add(key)

    def _run(self) -> None:
        while not pause(self._interval_s):
            self.flush()
