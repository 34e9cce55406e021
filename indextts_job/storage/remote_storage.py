"""A run in an object store or another remote file system, through fsspec.

One `pipe_file` call is one atomic put; files opened for writing are not used, because a failing `with` block would
leave a truncated object visible. Every operation is tried again for a while before it counts as failed. Object stores
cannot append: logs are kept here and written whole, behind the training, every few seconds.
"""

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from indextts_job.errors import AccessRefusedError, ConfigError, UnavailableError
from indextts_job.storage import files
from indextts_job.storage.config import StorageConfig
from indextts_job.storage.errors import patiently
from indextts_job.storage.local_storage import LocalStorage
from indextts_job.storage.reader import RemoteReader
from indextts_job.storage.remote_files import Bytes
from indextts_job.storage.run_storage import RunStorage, StoredFile, safe_key
from indextts_job.waiting import pause

PROBES = "probes"
"""Folder of short-lived keys that find out what a store can do."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


def open_storage(url: str, config: StorageConfig | None = None) -> RunStorage:
    """The storage of a run.

    Args:
        url: Path or URL.
        config: How patient to be with remote storage.

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
            # s3fs retries in silence; most of the patience belongs where it is counted and said.
            self._filesystem.fsspec.retries = 2

    def read(self, key: str) -> bytes:
        """See `RunStorage`."""
        return self._tried("reading", key, self._filesystem.read)

    def read_large(self, key: str, size_bytes: int) -> Bytes:
        """See `RunStorage`."""
        return self._reader.read_sized(size_bytes, safe_key(key))

    def write(self, key: str, content: bytes) -> None:
        """See `RunStorage`."""
        self._tried("writing", key, lambda path: self._filesystem.write(path, content))

    def create(self, key: str, content: bytes) -> None:
        """See `RunStorage`.

        A small file, so that it is one conditional put: stores let several conditional multipart uploads win.
        """

        def put(path: str) -> None:
            try:
                self._filesystem.write(path, content, mode="create")
            except OSError:
                # Taken by somebody else, or by an earlier try of this call whose answer was lost.
                taken = self._content(path)
                if taken is not None and taken != content:
                    raise FileExistsError(path) from None
                if taken is None:
                    raise

        self._tried("creating", key, put)

    def excludes_creators(self) -> bool:
        """See `RunStorage`: found out by creating a key twice."""
        key = f"{PROBES}/{uuid.uuid4().hex}"
        self.create(key, b"first")
        try:
            self.create(key, b"second")
        except FileExistsError:
            return True
        else:
            return False
        finally:
            # A bucket that forbids deletion keeps a few bytes, and all else works.
            with contextlib.suppress(UnavailableError, AccessRefusedError):
                self.delete(key)

    def append(self, key: str, content: bytes) -> None:
        """See `RunStorage`: visible after a few seconds, or after `flush`."""
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

    def remove_temporary(self, folder: str, older_than_s: float) -> None:
        """See `RunStorage`: a put leaves nothing behind but unfinished multipart uploads, which are aborted."""
        if hasattr(self._filesystem.fsspec, "list_multipart_uploads"):
            self._tried("aborting unfinished uploads below", folder, lambda path: self._abort_old(path, older_than_s))

    def _abort_old(self, path: str, older_than_s: float) -> None:
        bucket, _, prefix = path.partition("/")
        for upload in self._filesystem.call("list_multipart_uploads", bucket):
            old = time.time() - upload["Initiated"].timestamp() > older_than_s
            if old and upload["Key"].startswith(f"{prefix}/"):
                named = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                self._filesystem.call("call_s3", "abort_multipart_upload", **named)

    def _put_log(self, key: str, content: bytes, limit_s: float) -> None:
        path = f"{self._root}/{safe_key(key)}"
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
    written = entry.get("LastModified") or entry.get("created") or entry.get("mtime")
    if written is None:
        return 0.0
    instant = written if isinstance(written, (int, float)) else written.timestamp()
    return max(0.0, time.time() - float(instant))


class _BufferedLogs:
    """Logs of one process, written whole by a thread of their own while they grow."""

    def __init__(self, put: Callable[[str, bytes, float], None], interval_s: float) -> None:
        self._put = put
        self._interval_s = interval_s
        self._contents: dict[str, bytearray] = {}
        self._changed: set[str] = set()
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None

    def append(self, key: str, content: bytes) -> None:
        """Add to a log; starts the thread when there is something to write."""
        with self._lock:
            self._contents.setdefault(key, bytearray()).extend(content)
            self._changed.add(key)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="logs", daemon=True)
                self._thread.start()

    def flush(self, limit_s: float = 0.0) -> None:
        """Write what changed; a log that cannot be written stays changed and is tried again.

        Args:
            limit_s: How long to try again now; 0 leaves it to the next interval.
        """
        with self._writing:
            with self._lock:
                due = {key: bytes(self._contents[key]) for key in self._changed}
                self._changed.clear()
            for key, content in due.items():
                try:
                    self._put(key, content, limit_s)
                except (UnavailableError, AccessRefusedError, ConfigError) as error:
                    logger.warning("%s The log is kept and written later.", error)
                    with self._lock:
                        self._changed.add(key)

    def _run(self) -> None:
        while not pause(self._interval_s):
            self.flush()
