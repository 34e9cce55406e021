"""Paths and URLs: what may be opened at all, and what the text of a file may name. Pure.

A library that opens any URL also opens chains of file systems (`zip://a::http://b`), some of which run code or unpack
without bound. Here a URL is one protocol of a short list, one place (a bucket, a host), one path in it. What a
configuration or command line names may be any of them; what a data file names stays at the place of that file.
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
"""What is opened through fsspec. `memory` lies in the process; the tests run on it."""
LONGEST_NAME_BYTES, LONGEST_PATH_BYTES = 255, 4095
"""Of Linux (NAME_MAX, PATH_MAX): beyond them every look at a path fails, even whether it exists."""
_SAME_STORE = {"gcs": "gs", "abfss": "abfs", "az": "abfs"}
"""Other names of a protocol."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(.*)", re.DOTALL)
_ENDPOINT = re.compile(r"https?://([^\s/@?#\\]+@)?([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?(/[^\s?#]*)?")
_UNUSABLE = re.compile("[\x00\ud800-\udfff]")
"""No file system takes these; half of a surrogate pair has no bytes."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def is_local(url: str) -> bool:
    """Whether a path or URL is on a local file system."""
    return "://" not in url or url.startswith(_LOCAL)


def _unusable(text: str) -> bool:
    # A dataset has a million paths: the search is left out where it can find nothing.
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
    try:
        path = Path(url).expanduser() if url.startswith("~") else Path(url)
    except RuntimeError as error:
        raise ConfigError(f"{url}: {error}. Write the folder instead of `~`.") from error
    if len(url) <= LONGEST_NAME_BYTES and url.isascii():
        return path
    content = os.fsencode(path)
    if len(content) > LONGEST_PATH_BYTES or any(len(name) > LONGEST_NAME_BYTES for name in content.split(b"/")):
        raise ConfigError(f"{url[:80]}… has {len(content)} bytes. No such path can exist; give a shorter one.")
    return path


def absolute(url: str) -> str:
    """A local path as it is seen from any working directory; a URL as it is."""
    return str(local_path(url).resolve()) if is_local(url) else url


def same_place(one: str, other: str) -> bool:
    """Whether two paths or URLs name the same folder: links are followed, a slash at the end does not count."""
    return absolute(one.rstrip("/")) == absolute(other.rstrip("/"))


def demand_openable(url: str) -> str:
    """The protocol of a remote URL that may be opened.

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
    """Refuse the endpoint of an object store that is no address of a server; an empty one means the default.

    Args:
        url: As it was given.
        key: Configuration key or environment variable that names it.

    Raises:
        ConfigError: It is none.
    """
    if url and not _ENDPOINT.fullmatch(url):
        raise ConfigError(
            f"{key} is {redacted(url)!r}, expected the address of an S3-compatible store, for example "
            "https://storage.example.com or http://127.0.0.1:9000."
        )


def file_path(url: str) -> str:
    """A URL without its query: what tells the kind of a file by its ending (signed links have a long query)."""
    return url if is_local(url) else url.partition("?")[0]


def resolved(path: str, document: str) -> str:
    """A path that a data file names, as one to open.

    Args:
        path: Relative to the folder of the data file; absolute; or a URL.
        document: Path or URL of the data file.

    Raises:
        ValueError: It leaves the place of its document: another protocol, bucket or host; a local path in a remote
            file; or it is no path at all. The message says which.
    """
    if _unusable(path):
        raise ValueError(f"{path!r} holds a NUL or half a character, which no path can")
    local_document, folder = _local_and_folder(document)
    if "://" in path:
        if _place(path) != _place(document):
            raise ValueError(_leaves(path, document))
        return path if local_document else _within(path, document)
    if path.startswith(("/", "~")) and local_document:
        return path
    if path.startswith("/"):
        raise ValueError(_leaves(path, document))
    return posixpath.join(folder, path) if local_document else _within(f"{folder}/{path}", document)


@lru_cache(maxsize=256)
def _local_and_folder(document: str) -> tuple[bool, str]:
    return is_local(document), posixpath.dirname(file_path(document))


def _within(url: str, document: str) -> str:
    """A remote URL with its `..` taken out: object stores take them literally, web servers do not."""
    match = _URL.fullmatch(url)
    if match is None or "::" in url or _CONTROL.search(url):
        raise ValueError(f"{redacted(url)!r} is no plain URL")
    protocol, place, rest = match.groups()
    path, mark, query = rest.partition("?")
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
