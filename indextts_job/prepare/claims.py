"""Claims on units, which keep workers from doing the same work twice. They are advice: the commit decides.

A claim is a file `claims/NNNNN-WORKER`. Its age is measured with the storage's own time stamps, relative to a file that
this worker has just written, so that the clocks of the machines do not matter; one from the future is as old as the
time that it has been seen unchanged. A claim that is too old is free: its worker is gone. A worker that was started
again takes its own claim at once.
"""

import contextlib
import hashlib
import json
import logging
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

from indextts_job.checkpoint.attempt_record import AttemptRecord, parse_record
from indextts_job.redaction import redacted
from indextts_job.report.liveness import is_running, pid_namespace
from indextts_job.storage.run_storage import RunStorage, StoredFile

FOLDER = "claims"
LEAST_AGE_S = 60.0
"""A claim that is younger is never free."""
UNIT_TIMES = 3.0
"""Times of the slowest unit known here after which a claim is free."""
RENEW_S = 15.0
"""A worker writes its claim again this often, between batches."""
LONGEST_NAME = 80
MOST_SHOWN = 3
_NOW = "now"
logger = logging.getLogger(__name__)
_NAME = re.compile(r"(\d{5,9})-([A-Za-z0-9_.-]+)")


class Numbered(Protocol):
    """What can be claimed."""

    @property
    def number(self) -> int:
        """Its number."""


def worker_name(text: str) -> str:
    """A text as the name of a worker, which is part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:LONGEST_NAME] or "worker"


def owner_of(claim: bytes) -> tuple[str, int]:
    """Host and process id in a claim; no host and 0 where it does not say."""
    owner = _owner(claim)
    return owner.node, owner.pid or 0


def _owner(claim: bytes) -> AttemptRecord:
    """Process and machine in a claim; empty where it does not say, as in those of earlier releases."""
    return parse_record(claim)


def _lives(claim: bytes) -> bool:
    """Whether the process that wrote a claim is another one, on this machine, and runs."""
    owner = _owner(claim)
    # A process number that was given to another process, a zombie, and one of another container do not count.
    return owner.pid != os.getpid() and is_running(owner) is True


class Claims:
    """The claims of one worker among those of all.

    Args:
        storage: The storage of the preparation.
        worker: Name of this worker; no other that runs at the same time may have it.
        clock: The monotonic clock.
    """

    def __init__(self, storage: RunStorage, worker: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._storage = storage
        self._worker = worker
        self._clock = clock
        self._claimed: int | None = None
        self._written_at_s = 0.0
        self._slowest_s = 0.0
        self._process = AttemptRecord(
            node=platform.node(), pid=os.getpid(), pid_namespace=pid_namespace(), launched=datetime.now(UTC).isoformat()
        )
        self._writes = 0
        self._seen: dict[str, tuple[bytes, float]] = {}
        """Content of claims without a usable time stamp, and the instant since which it is the same."""

    @property
    def worker(self) -> str:
        """The name of this worker."""
        return self._worker

    def took(self, seconds: float) -> None:
        """Learn how long a unit took."""
        self._slowest_s = max(self._slowest_s, seconds)

    @property
    def free_after_s(self) -> float:
        """Age beyond which a claim of another worker is free."""
        return max(LEAST_AGE_S, UNIT_TIMES * self._slowest_s)

    def take(self, unfinished: Sequence[Numbered]) -> int | None:
        """Claim one of these units; returns its number, or None while others have claimed all of them.

        Args:
            unfinished: The units without a record.
        """
        listed = self._look()
        others = self._of_others(listed)
        for number in self._in_own_order([unit.number for unit in unfinished if unit.number not in others], listed):
            self._write(number)
            # Another worker may have claimed it between the listing and the write. Both see both now, and the older
            # claim wins; of two that look equally old the smaller name.
            listed = self._look()
            rival = self._of_others(listed).get(number)
            if rival is None or self._older_than(rival, listed):
                return number
            self.release()
        return None

    def renew(self) -> None:
        """Write the claim again if that was some time ago: a long unit must not look like that of a dead worker."""
        if self._claimed is not None and self._clock() - self._written_at_s >= RENEW_S:
            self._write(self._claimed)

    def release(self) -> None:
        """Give the claim back."""
        if self._claimed is not None:
            self._storage.delete(self._key(self._claimed))
            self._claimed = None

    def clear(self) -> None:
        """Remove all claims, of dead workers too: when every unit is finished, nobody needs them."""
        for name in self._storage.list(FOLDER):
            self._storage.delete(f"{FOLDER}/{name}")

    def holders(self, units: Sequence[Numbered]) -> str:
        """Who works on units, in words."""
        others = self._of_others(self._look())
        found = [f"{others[unit.number][1]} on unit {unit.number}" for unit in units if unit.number in others]
        return ", ".join(found[:MOST_SHOWN]) + (f" and {len(found) - MOST_SHOWN} more" * (len(found) > MOST_SHOWN))

    def _key(self, number: int) -> str:
        return f"{FOLDER}/{number:05d}-{self._worker}"

    def keep_apart(self) -> None:
        """Take another name where a living process on this machine works under it: both would take each other's units.

        Not an error: the process may be one that is about to end, and launchers do not repeat a wrong command line.
        """
        for name in self._storage.list(FOLDER):
            match = _NAME.fullmatch(name)
            if match and match[2] == self._worker and _lives(self._content(name)):
                self._worker = f"{self._worker[:LONGEST_NAME]}-{os.getpid()}"
                logger.warning(
                    "another process of this machine works as %s on %s, so this one works as %s. Give each a name of "
                    "its own: --worker NAME.", match[2], redacted(self._storage.url), self._worker
                )  # fmt: skip
                return

    def _content(self, name: str) -> bytes:
        with contextlib.suppress(FileNotFoundError):  # given back meanwhile
            return self._storage.read(f"{FOLDER}/{name}")
        return b""

    def _write(self, number: int) -> None:
        # Each write has another content, which shows that this worker lives where time stamps do not.
        self._writes += 1
        content = {**self._process.to_json(), "unique": f"{os.getpid()}.{self._writes}"}
        self._storage.write(self._key(number), json.dumps(content).encode())
        self._claimed, self._written_at_s = number, self._clock()

    def _look(self) -> Mapping[str, StoredFile]:
        """All claims, with a file of this instant among them that ages are measured from."""
        self._storage.write(f"{FOLDER}/{_NOW}-{self._worker}", b"")
        return self._storage.list(FOLDER)

    def _in_own_order(self, numbers: Sequence[int], listed: Mapping[str, StoredFile]) -> list[int]:
        """The units that this worker claimed before its restart, then all others from a place of its own on.

        Workers that start at the same moment would otherwise all reach for the first unit.
        """
        mine = [number for number in numbers if f"{number:05d}-{self._worker}" in listed]
        start = int.from_bytes(hashlib.sha256(self._worker.encode()).digest()[:8], "big") % max(1, len(numbers))
        rest = [number for number in (*numbers[start:], *numbers[:start]) if number not in mine]
        return mine + rest

    def _of_others(self, listed: Mapping[str, StoredFile]) -> dict[int, tuple[float, str]]:
        """Fresh claims of other workers: by number of the unit the age of the oldest in seconds, and whose it is."""
        now_s = self._own_age_s(listed)
        found: dict[int, tuple[float, str]] = {}
        for name, file in listed.items():
            match = _NAME.fullmatch(name)
            if not match or match[2] == self._worker:
                continue
            age_s = self._age_s(name, file.age_s - now_s)
            if age_s <= self.free_after_s:
                number = int(match[1])
                found[number] = max(found.get(number, (0.0, "")), (age_s, match[2]))
        return found

    def _age_s(self, name: str, age_s: float) -> float:
        """Age of a claim; of one from the future the time since it was first seen, unless it was written again."""
        if age_s > 0:
            return age_s
        content, now_s = self._content(name), self._clock()
        seen = self._seen.get(name, (None, now_s))
        if seen[0] != content:
            seen = self._seen[name] = content, now_s
        return now_s - seen[1]

    def _own_age_s(self, listed: Mapping[str, StoredFile]) -> float:
        """Age of the file just written: what the clocks of this machine and the storage differ by."""
        own = listed.get(f"{_NOW}-{self._worker}")
        return own.age_s if own else min((file.age_s for file in listed.values()), default=0.0)

    def _older_than(self, rival: tuple[float, str], listed: Mapping[str, StoredFile]) -> bool:
        """Whether this worker's claim is older than another's."""
        with contextlib.suppress(KeyError):
            mine = listed[f"{self._claimed:05d}-{self._worker}"].age_s - self._own_age_s(listed)
            return (round(mine), rival[1]) > (round(rival[0]), self._worker)
        return False
