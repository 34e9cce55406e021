"""Whole files by local path or fsspec URL, with errors that say what to do.

Only regular files of an expected size are read. The size is checked before memory is allocated, so that a pipe does
not hang a run and a sparse file does not use up the machine's memory.
"""

import errno
import os
import re
import stat
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import fsspec

from indextts_job.background import begin
from indextts_job.errors import AccessRefusedError, ConfigError, DataError, UnavailableError
from indextts_job.hashing import identity_hash
from indextts_job.redaction import redacted
from indextts_job.storage.config import StorageConfig
from indextts_job.storage.errors import patiently, translated
from indextts_job.storage.node_cache import NodeCache
from indextts_job.storage.reader import RemoteReader
from indextts_job.storage.remote_files import PART_BYTES, Bytes, RemoteFileSystem
from indextts_job.storage.urls import demand_endpoint, is_local, local_path
from indextts_job.strict_yaml import LARGEST_BYTES, parse_yaml
from indextts_job.waiting import result

__all__ = [
    "backslash_hint",
    "configure_object_stores",
    "copy_ahead",
    "exists",
    "is_local",
    "keep_copies_of_inputs",
    "local_copy",
    "local_path",
    "read_ahead",
    "read_bytes",
    "read_input",
    "read_manifest",
    "read_yaml",
    "sizes",
    "versions",
]

READ_PATIENCE_S = 60.0
"""How long reads of remote inputs are retried."""
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10, 60
"""A request without an answer has failed after this."""
CONNECTIONS = 64
"""Size of the S3 client's pool. With its default of 10, parallel reads of small files were less than half as fast."""
LARGEST_MANIFEST_BYTES = 2**32
"""A million records have about 700 MB; this is six times as much."""
LARGEST_FILE_BYTES = 2**40
"""Bound for any other file that is read whole."""
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
# A drive letter at the beginning, or behind a slash as in `file:///C:/`.
_DRIVE = re.compile(r"(?:(?<=/)|^)[A-Za-z]:/")


def configure_object_stores(config: StorageConfig) -> None:
    """Set the options of fsspec for S3 in this process, before the first URL is opened.

    Raises:
        ConfigError: The environment names an endpoint that is no address of a server.
    """
    options: dict[str, object] = {
        # Another process writes into the same run: a cached listing would hide its files.
        "use_listings_cache": False,
        "config_kwargs": {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "max_pool_connections": CONNECTIONS,
            # Every object is compared with its own hash. Some stores answer a ranged read with the checksum of the
            # whole object, and the client would refuse every such answer.
            "response_checksum_validation": "when_required",
            # Most retries are left to `errors.patiently`, which bounds their time and logs them.
            "retries": {"max_attempts": 2, "mode": "standard"},
        },
    }
    for variable in _ENDPOINT_VARIABLES:
        demand_endpoint(os.environ.get(variable, ""), variable)
    if config.endpoint_url:
        options["endpoint_url"] = config.endpoint_url
    # Through the configuration, because file systems are opened by URL in many places, by libraries too.
    fsspec.config.conf["s3"] = options


def exists(url: str) -> bool:
    """Whether a file or folder exists."""
    if is_local(url):
        with translated(f"looking at {url}"):
            return local_path(url).exists()
    filesystem, path = RemoteFileSystem.of(url)
    return patiently(f"looking at {url}", lambda: filesystem.exists(path), READ_PATIENCE_S)


def may_be_read(url: str) -> bool:
    """Whether the first byte of a remote file can be read now."""
    filesystem, path = RemoteFileSystem.of(url)
    try:
        patiently(f"reading {url}", lambda: filesystem.read_range(path, 0, 1), READ_PATIENCE_S)
    except (FileNotFoundError, AccessRefusedError):
        return False
    return True


def sizes(folder: str) -> dict[str, int]:
    """Sizes in bytes of the files directly in a folder, by name; empty when the folder does not exist."""
    if is_local(folder):
        with translated(f"listing {folder}"):
            return _local_sizes(local_path(folder))
    filesystem, root = RemoteFileSystem.of(folder)
    try:
        found = patiently(f"listing {folder}", lambda: filesystem.list(root), READ_PATIENCE_S)
    except FileNotFoundError:
        return {}
    return {entry["name"].rpartition("/")[2]: int(entry["size"] or 0) for entry in found}


_VERSION_MARKS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
"""Names under which stores list what tells versions of a file apart; the first one counts."""


def versions(folder: str) -> dict[str, str]:
    """What tells versions of the remote files directly in a folder apart, by name, of one listing; empty without it."""
    filesystem, root = RemoteFileSystem.of(folder)
    try:
        found = patiently(f"listing {folder}", lambda: filesystem.list(root), READ_PATIENCE_S)
    except FileNotFoundError:
        return {}
    return {entry["name"].rpartition("/")[2]: _version_of(entry) for entry in found if entry.get("type") != "directory"}


def _version_of(entry: dict[str, Any]) -> str:
    mark = next((str(entry[key]) for key in _VERSION_MARKS if entry.get(key)), "")
    return f"{int(entry['size'] or 0)} {mark}".rstrip()


# A global, because the first reader of an input does not know who asks for it later. Each entry is taken out when read.
_ahead: dict[str, Future[bytes]] = {}


def read_ahead(url: str) -> None:
    """Start reading a file in the background; the next `read_bytes` of this URL takes the result."""
    if url not in _ahead:
        _ahead[url] = begin(lambda: _read(url), "read ahead")


def read_bytes(url: str, limit_bytes: int = LARGEST_FILE_BYTES) -> bytes:
    """A whole file.

    Args:
        url: Path or URL.
        limit_bytes: A larger file is refused before any memory is taken for it.

    Raises:
        FileNotFoundError: It is not there, or a folder.
        DataError: It is no regular file, or too large.
        IndexTTSJobError: It cannot be read, as `errors.translated` says.
    """
    # Taken out: a second read of the same URL must see what is there then.
    future = _ahead.pop(url, None)
    if future is None:
        return _read(url, limit_bytes)
    content = result(future)
    _demand_size(url, len(content), limit_bytes)
    return content


_copies: list[NodeCache] = []
_copies_ahead: dict[str, Future[Path | Bytes | None]] = {}
"""Globals for the same reason as `_ahead`: the copies of inputs on this node, and those that are being made."""


def keep_copies_of_inputs(copies: NodeCache | None) -> None:
    """Let `local_copy` keep copies of large inputs on this node, or none."""
    _copies[:] = [copies] if copies else []


def copy_ahead(url: str) -> None:
    """Start to make a copy of a large remote file in the background, which the next `local_copy` takes.

    Where no copies are kept, the file is read to memory, as by `read_ahead`.
    """
    if _copies:
        _copies_ahead[url] = begin(lambda: _local_copy(url), "copy ahead")
    else:
        read_ahead(url)


def local_copy(url: str) -> Path | Bytes | None:
    """A large remote file by its copy on this node, which is made if there is none yet.

    A copy belongs to one version of the file, as its server tells versions apart.

    Args:
        url: URL of a remote file.

    Returns:
        The copy, or the content while its copy is being written; None where there can be none.

    Raises:
        FileNotFoundError: There is no such file.
        IndexTTSJobError: It cannot be read, as `errors.translated` says.
    """
    future = _copies_ahead.pop(url, None)
    return result(future) if future else _local_copy(url)


def _local_copy(url: str, limit_bytes: int = LARGEST_FILE_BYTES) -> Path | Bytes | None:
    if not _copies or is_local(url):
        return None
    reader = RemoteReader(url, READ_PATIENCE_S)
    info = patiently(f"reading {url}", lambda: reader.filesystem.info(reader.root), READ_PATIENCE_S)
    size_bytes = int(info["size"] or 0)
    _demand_size(url, size_bytes, limit_bytes)
    # Without a mark of its version a replaced file could not be told from the one that was copied.
    marks = [str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified", "VersionId") if info.get(key)]
    if not marks or size_bytes < PART_BYTES:
        return None
    version = identity_hash("\n".join([url, str(size_bytes), *marks]).encode())
    return _copies[0].file(version, size_bytes, lambda: _read_large(reader, url, limit_bytes, info))


def _local_sizes(folder: Path) -> dict[str, int]:
    if not folder.is_dir():
        return {}
    return {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}


def _read(url: str, limit_bytes: int = LARGEST_FILE_BYTES) -> bytes:
    if is_local(url):
        with translated(f"reading {url}"):
            return _read_local(local_path(url), limit_bytes)
    reader = RemoteReader(url, READ_PATIENCE_S)
    first = reader.read_range(0, PART_BYTES)
    if len(first) != PART_BYTES:
        _demand_size(url, len(first), limit_bytes)
        return first  # all of it: most files are smaller than a part, and some servers know no ranges
    copy = _local_copy(url, limit_bytes)
    if isinstance(copy, Path):
        return copy.read_bytes()
    if copy is not None:
        return copy.tobytes()
    return _read_large(reader, url, limit_bytes).tobytes()


def _read_large(reader: RemoteReader, url: str, limit_bytes: int, known: dict[str, Any] | None = None) -> Bytes:
    """A remote file of several parts, which must not change between the first part and the last.

    Args:
        reader: Of the file.
        url: For messages.
        limit_bytes: A larger file is refused.
        known: Size and version, if they were asked for already.
    """

    def info() -> dict[str, Any]:
        return patiently(f"reading {url}", lambda: reader.filesystem.info(reader.root), READ_PATIENCE_S)

    # A file replaced between two parts would give a mixture that no checksum of ours covers.
    before = known or info()
    _demand_size(url, int(before["size"]), limit_bytes)
    content = reader.read_sized(int(before["size"]))
    if info() != before:
        raise UnavailableError(f"{redacted(url)} was replaced while it was being read. Start again.")
    return content


def _read_local(path: Path, limit_bytes: int) -> bytes:
    # Opening a pipe without O_NONBLOCK waits for a writer that may never come.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise DataError(f"{path} is a socket or a device, expected a regular file.") from error
    try:
        # Of the open file, not of the path: the path may name another file a moment later.
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(str(path))
        if not stat.S_ISREG(status.st_mode):
            kind = "a pipe" if stat.S_ISFIFO(status.st_mode) else "a device"
            raise DataError(f"{path} is {kind}, expected a regular file. Write its content to a file and give that.")
        _demand_size(str(path), status.st_size, limit_bytes)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)
    finally:
        os.close(descriptor)


def _demand_size(url: str, size_bytes: int, limit_bytes: int) -> None:
    if size_bytes > limit_bytes:
        raise DataError(
            f"{redacted(url)} has {size_bytes} bytes, expected at most {limit_bytes}. It is another file than it "
            "should be, or damaged."
        )


def read_input(url: str, what: str, key: str, limit_bytes: int = LARGEST_FILE_BYTES) -> bytes:
    """A file that the configuration names.

    Args:
        url: Path or URL.
        what: The kind of file in words, for messages.
        key: The configuration key that names it.
        limit_bytes: As in `read_bytes`.

    Raises:
        ConfigError: It is not there.
    """
    if not url:
        raise ConfigError(f"{key} is not set. Give the path or URL of the {what}.")
    try:
        return read_bytes(url, limit_bytes)
    except FileNotFoundError:
        if is_local(url) and local_path(url).is_dir():
            raise ConfigError(f"{what}: {redacted(url)} is a folder (from {key}), expected a file.") from None
        raise ConfigError(
            f"{what} not found: {redacted(url)} (from {key}, seen from {Path.cwd()}). Give an existing path or URL."
        ) from None


def read_yaml(url: str, what: str, key: str) -> object:
    """A YAML file that the configuration names, parsed.

    Raises:
        ConfigError: It is not there or not YAML.
    """
    try:
        content = read_input(url, what, key, LARGEST_BYTES)
    except DataError as error:
        raise ConfigError(f"{what} (from {key}): {error}") from error
    return parse_yaml(content, redacted(url))


def backslash_hint(path: str) -> str:
    """A hint for a path that was not found and has backslashes, as Windows writes it; empty for other paths."""
    # On Linux a backslash is a legal character of a name, so this is a hint and not an error.
    if "\\" not in path:
        return ""
    plain = redacted(path).replace("\\", "/")
    return f" It has backslashes, as Windows writes paths; write / instead: {_DRIVE.sub('', plain)}."


def read_manifest(url: str) -> bytes:
    """A dataset manifest as it is.

    Raises:
        DataError: It is missing.
    """
    try:
        return read_bytes(url, LARGEST_MANIFEST_BYTES)
    except FileNotFoundError:
        raise _no_manifest(url) from None


def _no_manifest(url: str) -> DataError:
    shown = redacted(url)
    if is_local(url) and local_path(url).is_dir():
        return DataError(
            f"{shown} is a folder, and no sharded dataset. Give a manifest, or a folder that `indextts-job shard` "
            "wrote."
        )
    return DataError(
        f"manifest not found: {shown} (seen from {Path.cwd()}).{backslash_hint(url)} Give an existing path or URL."
    )
