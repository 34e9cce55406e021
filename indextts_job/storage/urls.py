"""Paths and URLs: which of them may be opened, and which of them a data file may name. Pure.

fsspec also opens chains of file systems (`zip://a::http://b`), some of which run code or unpack without bound. Here a
URL is one protocol of a short list, one place (a bucket or host), and one path in it. A configuration or command line
may name any of them; a data file may name only files at its own place.
"""

import os
import posixpath
import re
from functools import lru_cache
from pathlib import Path

from indextts_job.errors import ConfigError
from indextts_job.redaction import redacted

_LOCAL = ("file://", "local://")
REMOTE_PROTOCOLS = ("s3", "gs", "gcs", "abfs", "abfss", "az", "http", "https", "memory")
"""Protocols that are opened through fsspec. `memory` is inside the process and serves tests."""
LONGEST_NAME_BYTES, LONGEST_PATH_BYTES = 255, 4095
"""Limits of Linux (NAME_MAX, PATH_MAX). Beyond them every call fails, even the question whether a path exists."""
_SAME_STORE = {"gcs": "gs", "abfss": "abfs", "az": "abfs"}
"""Other names of a protocol, with the name that they are compared under."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(.*)", re.DOTALL)
_ENDPOINT = re.compile(r"https?://([^\s/@?#\\]+@)?([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?(/[^\s?#]*)?")
_UNUSABLE = re.compile("[\x00\ud800-\udfff]")
"""Characters that no file system takes: NUL, and halves of surrogate pairs, which have no encoding."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def is_local(url: str) -> bool:
    """Whether a path or URL is on a local file system."""
    return "://" not in url or url.startswith(_LOCAL)


def _unusable(text: str) -> bool:
    # A dataset has a million paths, so the search is left out where it cannot find anything.
    return "\0" in text or (not text.isascii() and _UNUSABLE.search(text) is not None)


def local_path(url: str) -> Path:
    """A local path or `file://` URL as a path, `~` expanded.

    Raises:
        ConfigError: No path can look like this, or the user after `~` does not exist.
    """
    for prefix in _LOCAL:
        url = url.removeprefix(prefix)
    if _unusable(url):
        raise ConfigError(f"{url!r} holds a NUL or half a character, which no path can. Give another path.")
    path = _expanded(url)
    # Short ASCII paths, that is nearly all of a million, need no look at their bytes.
    if len(url) > LONGEST_NAME_BYTES or not url.isascii():
        _demand_length(os.fsencode(path), url)
    return path


def _expanded(url: str) -> Path:
    try:
        return Path(url).expanduser() if url.startswith("~") else Path(url)
    except RuntimeError as error:  # `~name` of a user that does not exist
        raise ConfigError(f"{url}: {error}. Write the folder instead of `~`.") from error


def _demand_length(content: bytes, url: str) -> None:
    if len(content) > LONGEST_PATH_BYTES or any(len(name) > LONGEST_NAME_BYTES for name in content.split(b"/")):
        raise ConfigError(f"{url[:80]}… has {len(content)} bytes. No such path can exist; give a shorter one.")


def absolute(url: str) -> str:
    """A local path made absolute, links followed; a URL unchanged."""
    return str(local_path(url).resolve()) if is_local(url) else url


def same_place(one: str, other: str) -> bool:
    """Whether two paths or URLs name the same folder: links are followed, a slash at the end is ignored."""
    return absolute(one.rstrip("/")) == absolute(other.rstrip("/"))


def demand_openable(url: str) -> str:
    """The protocol of a remote URL, after a check that it may be opened.

    Raises:
        ConfigError: A chain of file systems, an unknown protocol, no bucket or host, or control characters.
    """
    match = _URL.fullmatch(url)
    if match is None or "::" in url:
        kind = "chains several file systems" if "::" in url else "is no URL"
        raise ConfigError(f"{redacted(url)}: {kind}. Give one plain URL, for example s3://bucket/folder/file.")
    protocol, place, _ = match.groups()
    if protocol not in REMOTE_PROTOCOLS:
        known = ", ".join(REMOTE_PROTOCOLS[:-1])
        raise ConfigError(f"{redacted(url)}: {protocol}:// is not opened. Give a local path, or one of {known}.")
    if not place:
        raise ConfigError(f"{redacted(url)}: names no bucket or host. Expected {protocol}://bucket/folder.")
    if _CONTROL.search(url) or _UNUSABLE.search(url):
        raise ConfigError(f"{redacted(url)!r} holds control characters. Give a URL without them.")
    return protocol


def demand_endpoint(url: str, key: str) -> None:
    """Refuse an endpoint of an object store that is no address of a server; an empty one means the default.

    Args:
        key: Configuration key or environment variable that names it, for the message.

    Raises:
        ConfigError: It is no address of a server.
    """
    if url and not _ENDPOINT.fullmatch(url):
        raise ConfigError(
            f"{key} is {redacted(url)!r}, expected the address of an S3-compatible store, for example "
            "https://storage.example.com or http://127.0.0.1:9000."
        )


def file_path(url: str) -> str:
    """A URL without its query, so that its ending tells the kind of file (signed links have a long query)."""
    return url if is_local(url) else url.partition("?")[0]


def resolved(path: str, document: str) -> str:
    """The path or URL to open for a path that a data file names.

    Args:
        path: Relative to the folder of the data file; absolute; or a URL.
        document: Path or URL of the data file.

    Raises:
        ValueError: It leaves the place of its document (another protocol, bucket or host, or a local path in a remote
            file), or it is no path at all. The message says which.
    """
    if _unusable(path):
        raise ValueError(f"{path!r} holds a NUL or half a character, which no path can")
    local_document, folder = _local_and_folder(document)
    if "://" in path:
        if _place(path) != _place(document):
            raise ValueError(_leaves(path, document))
        # A local document may name local files anywhere: its author can read them anyhow.
        return path if local_document else _within(path, document)
    if path.startswith(("/", "~")) and local_document:
        return path
    if path.startswith("/"):
        raise ValueError(_leaves(path, document))
    return posixpath.join(folder, path) if local_document else _within(f"{folder}/{path}", document)


# A million records name a handful of documents; parsing their URLs again would dominate.
@lru_cache(maxsize=256)
def _local_and_folder(document: str) -> tuple[bool, str]:
    return is_local(document), posixpath.dirname(file_path(document))


def _within(url: str, document: str) -> str:
    """A remote URL with its `..` resolved. Object stores take `..` literally, web servers resolve it."""
    match = _URL.fullmatch(url)
    if match is None or "::" in url or _CONTROL.search(url):
        raise ValueError(f"{redacted(url)!r} is no plain URL")
    protocol, place, rest = match.groups()
    path, mark, query = rest.partition("?")
    # Left as it is in the usual case: normpath would also merge `//`, which object stores tell apart.
    if not {".", ".."}.intersection(path.split("/")):
        return url
    path = posixpath.normpath(path.lstrip("/"))
    if path in (".", "..") or path.startswith("../"):
        raise ValueError(_leaves(url, document))
    return f"{protocol}://{place}/{path}{mark}{query}"


@lru_cache(maxsize=256)
def _place(url: str) -> tuple[str, str]:
    """Protocol and bucket or host; ("file", "") for everything local."""
    match = None if is_local(url) else _URL.fullmatch(url)
    if match is None:
        return ("file", "") if is_local(url) else ("", url)
    protocol, place, _ = match.groups()
    return _SAME_STORE.get(protocol, protocol), place


def _leaves(path: str, document: str) -> str:
    protocol, place = _place(document)
    where = (
        "a local path" if protocol == "file" else f"a path relative to the manifest, or a URL in {protocol}://{place}"
    )
    return f"{redacted(path)!r} leads away from where its manifest lies; expected {redacted(where)}"
