"""Claims on units, which keep workers from doing the same work twice. They are advice: the commit decides.

A claim is a file `claims/NNNNN-WORKER`. Its age is measured with the storage's own time stamps, relative to a file that
this worker has just written, so that the clocks of the machines do not matter. A claim that is too old is free: its
worker is gone. A worker that was started again takes its own claim at once.
"""

import contextlib
import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from indextts_job.errors import ConfigError
from indextts_job.redaction import redacted
from indextts_job.storage.run_storage import RunStorage, StoredFile

FOLDER = "claims"
LEAST_AGE_S = 60.0
"""A claim that is younger is never free."""
UNIT_TIMES = 3.0
"""Times of the slowest unit known here after which a claim is free."""
RENEW_S = 15.0
"""A worker writes its claim again this often, between batches."""
_NOW = "now"
_NAME = re.compile(r"(\d{5,9})-([A-Za-z0-9_.-]+)")


class Numbered(Protocol):
    """What can be claimed."""

    @property
    def number(self) -> int:
        """Its number."""


def worker_name(text: str) -> str:
    """A text as the name of a worker, which is part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:80] or "worker"


def owner_of(claim: bytes) -> tuple[str, int]:
    """Host and process id in a claim; no host and 0 where it does not say."""
    words = claim.decode(errors="replace").split()
    return (words[0], int(words[1])) if len(words) == 2 and words[1].isdigit() else ("", 0)


def _lives(claim: bytes) -> bool:
    """Whether the process that wrote a claim is another one, on this machine, and runs."""
    host, pid = owner_of(claim)
    # In a container every worker has the number 1, and so has its successor.
    if host != socket.gethostname() or pid in (0, os.getpid()):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs, as another user
    return True


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

    def _key(self, number: int) -> str:
        return f"{FOLDER}/{number:05d}-{self._worker}"

    def demand_alone(self) -> None:
        """Refuse a name that a living process on this machine works under: both would take each other's units.

        Raises:
            ConfigError: There is such a process.
        """
        for name in self._storage.list(FOLDER):
            match = _NAME.fullmatch(name)
            if match and match[2] == self._worker and _lives(self._content(name)):
                raise ConfigError(
                    f"another process of this machine works as {self._worker} on {redacted(self._storage.url)}. Give "
                    "each process a name of its own: --worker NAME."
                )

    def _content(self, name: str) -> bytes:
        with contextlib.suppress(FileNotFoundError):  # given back meanwhile
            return self._storage.read(f"{FOLDER}/{name}")
        return b""

    def _write(self, number: int) -> None:
        self._storage.write(self._key(number), f"{socket.gethostname()} {os.getpid()}".encode())
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
            age_s = file.age_s - now_s
            if match and match[2] != self._worker and age_s <= self.free_after_s:
                number = int(match[1])
                found[number] = max(found.get(number, (0.0, "")), (age_s, match[2]))
        return found

    def _own_age_s(self, listed: Mapping[str, StoredFile]) -> float:
        """Age of the youngest file: what the clocks of this machine and the storage differ by, at most."""
        return min((file.age_s for file in listed.values()), default=0.0)

    def _older_than(self, rival: tuple[float, str], listed: Mapping[str, StoredFile]) -> bool:
        """Whether this worker's claim is older than another's."""
        with contextlib.suppress(KeyError):
            mine = listed[f"{self._claimed:05d}-{self._worker}"].age_s - self._own_age_s(listed)
            return (round(mine), rival[1]) > (round(rival[0]), self._worker)
        return False
