"""The interface of a run's storage. A write is all or nothing, and durable before it is visible (I4)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from indextts_job.errors import DataError
from indextts_job.hashing import Buffer
from indextts_job.storage.remote_files import Bytes

PROBES = "probes"
"""Folder of short-lived keys that are created to find out what a store can do."""
_KEY = re.compile(r"(?!\.\.?/)(?:[^/\\\x00-\x1f]+/)*[^/\\\x00-\x1f]*")


def safe_key(key: str) -> str:
    """The key itself, after a check that it stays below the root of its run.

    Keys come from manifests and indexes too, that is from files. Retention deletes what they name.

    Raises:
        DataError: It is absolute, climbs up, or holds control characters or backslashes.
    """
    # The expression cannot exclude `..` in every position without being unreadable, so the parts are looked at too.
    if not _KEY.fullmatch(key) or any(part in (".", "..") for part in key.split("/")):
        raise DataError(f"{key!r} is no key of a run: a relative path with / that stays inside was expected.")
    return key


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a run."""

    size_bytes: int
    age_s: float
    """Seconds since it was written; 0 where the storage does not tell, so that nothing counts as old."""


class RunStorage(Protocol):
    """The operations on a run's storage. Keys are relative to the run and use `/`."""

    url: str

    def read(self, key: str) -> bytes:
        """A whole file; FileNotFoundError when it is not there."""

    def read_large(self, key: str, size_bytes: int) -> Bytes:
        """Like `read`, for a file whose size is known: parallel, one copy; shorter when the file is shorter."""

    def write(self, key: str, content: Buffer) -> None:
        """Make a file visible with this content, all or nothing, durably."""

    def create(self, key: str, content: bytes) -> None:
        """Like `write`, but FileExistsError when the key is taken; of several racing creators one succeeds."""

    def excludes_creators(self) -> bool:
        """Whether `create` really refuses a taken key; some object stores ignore the condition silently."""

    def append(self, key: str, content: bytes) -> None:
        """Add to a log. Not durable until `flush`."""

    def list(self, folder: str) -> dict[str, StoredFile]:
        """Files directly in a folder by name, temporary ones left out; empty when the folder is not there."""

    def delete(self, key: str) -> None:
        """Remove a file; no error when it is gone."""

    def folders(self, folder: str) -> Sequence[str]:
        """Names of the folders directly in a folder; empty when it is not there."""

    def remove_empty_folders(self) -> None:
        """Remove all folders of the run that hold nothing, and its own if nothing is left. Buckets have none."""

    def flush(self, *, patient: bool = False) -> None:
        """Make appended content visible and durable. Content that cannot be written is logged, kept and written later.

        Args:
            patient: Retry for a while, as for everything that a commit needs.
        """

    def remove_temporary(self, folder: str, older_than_s: float) -> None:
        """Remove temporary files of killed writers."""
