"""Whole files by local path or fsspec URL, with errors that say what to do."""

import os
from concurrent.futures import Future
from pathlib import Path

import fsspec
import yaml

from indextts_job.background import begin
from indextts_job.errors import ConfigError, DataError, UnavailableError
from indextts_job.remote_files import PART_BYTES, PartReader, RemoteFileSystem
from indextts_job.retry import StorageConfig
from indextts_job.storage_errors import patiently, translated

READ_PATIENCE_S = 60.0
"""How long a remote input is tried again."""
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10, 60
"""A request without an answer is a failure after this."""
CONNECTIONS = 64
"""Of the S3 client's pool; its default of 10 starves parallel reads."""


def configure_object_stores(config: StorageConfig) -> None:
    """Set how fsspec reaches S3 in this process, before the first URL is opened.

    Listings are never cached: another process writes into the same run.
    """
    options: dict[str, object] = {
        "use_listings_cache": False,
        "config_kwargs": {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "max_pool_connections": CONNECTIONS,
            # Most of the patience belongs where it is counted and said: in `storage_errors.patiently`.
            "retries": {"max_attempts": 2, "mode": "standard"},
        },
    }
    if config.endpoint_url:
        options["endpoint_url"] = config.endpoint_url
    fsspec.config.conf["s3"] = options


def is_local(url: str) -> bool:
    """Whether a path or URL is on a local file system."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    """A local path or `file://` URL as a path."""
    return Path(url.removeprefix("file://")).expanduser()


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    if is_local(url):
        return local_path(url).exists()
    filesystem, path = RemoteFileSystem.of(url)
    return patiently(f"looking at {url}", lambda: filesystem.exists(path), READ_PATIENCE_S)


def sizes(folder: str) -> dict[str, int]:
    """Sizes in bytes of the files directly in a folder, by name; empty when it is not there."""
    if is_local(folder):
        path = local_path(folder)
        return {entry.name: entry.stat().st_size for entry in os.scandir(path)} if path.is_dir() else {}
    filesystem, root = RemoteFileSystem.of(folder)
    try:
        found = patiently(f"listing {folder}", lambda: filesystem.list(root), READ_PATIENCE_S)
    except FileNotFoundError:
        return {}
    return {entry["name"].rpartition("/")[2]: int(entry["size"] or 0) for entry in found}


_ahead: dict[str, Future[bytes]] = {}


def read_ahead(url: str) -> None:
    """Begin to read a file that will be asked for once, while something else is going on."""
    if url not in _ahead:
        _ahead[url] = begin(lambda: _read(url), "read ahead")


def read_bytes(url: str) -> bytes:
    """A whole file.

    Raises:
        FileNotFoundError: It is not there.
        IndexTTSJobError: It cannot be read; see `storage_errors.translated`.
    """
    future = _ahead.pop(url, None)
    return future.result() if future else _read(url)


def _read(url: str) -> bytes:
    what = f"reading {url}"
    if is_local(url):
        with translated(what):
            return local_path(url).read_bytes()
    filesystem, path = RemoteFileSystem.of(url)

    def fetch(start: int, stop: int) -> bytes:
        return patiently(what, lambda: filesystem.read_range(path, start, stop), READ_PATIENCE_S)

    first = fetch(0, PART_BYTES)
    if len(first) != PART_BYTES:
        return first  # all of it: most files are smaller than a part, and some servers know no ranges
    before = patiently(what, lambda: filesystem.info(path), READ_PATIENCE_S)
    content = PartReader().read(fetch, int(before["size"]))
    if patiently(what, lambda: filesystem.info(path), READ_PATIENCE_S) != before:
        raise UnavailableError(f"{url} was replaced while it was being read. Start again.")
    return content.tobytes()


def read_input(url: str, what: str, key: str) -> bytes:
    """A file that the configuration names.

    Args:
        url: Path or URL.
        what: The thing in words, for messages.
        key: The configuration key that names it.

    Raises:
        ConfigError: It is not there.
    """
    if not url:
        raise ConfigError(f"{key} is not set. Give the path or URL of the {what}.")
    try:
        return read_bytes(url)
    except FileNotFoundError:
        raise ConfigError(
            f"{what} not found: {url} (from {key}, seen from {Path.cwd()}). Give an existing path or URL."
        ) from None


def read_yaml(url: str, what: str, key: str) -> object:
    """A YAML file that the configuration names, parsed.

    Raises:
        ConfigError: It is not there or not YAML.
    """
    content = read_input(url, what, key)
    try:
        return yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{url}: not valid YAML: {error}") from error


def read_manifest_text(url: str) -> str:
    """A dataset manifest as text.

    Raises:
        DataError: It is missing or not UTF-8.
    """
    try:
        return read_bytes(url).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"manifest not found: {url} (seen from {Path.cwd()}). Give an existing path or URL.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{url}: not UTF-8 text ({error}). A manifest is JSON lines in UTF-8.") from error
