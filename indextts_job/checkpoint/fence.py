"""One writer per run (I5): every attempt takes a number, and only the highest one may commit.

A node that lost its network can wake up after its successor has gone on. It then finds a higher number and stops; what
it had written so far is named by no manifest and harmless.
"""

import json
import logging
import re
import uuid
from collections.abc import Mapping
from typing import Any

from indextts_job.checkpoint.storage import RunStorage
from indextts_job.errors import ConfigError, SupersededError

logger = logging.getLogger(__name__)

FOLDER = "attempts"
_NAME = re.compile(r"(\d{4,})\.json")


class Fence:
    """The right to write into a run, until somebody takes the next number."""

    def __init__(self, storage: RunStorage, record: Mapping[str, Any]) -> None:
        """Take the next attempt number.

        Args:
            storage: The run.
            record: What to write down about this attempt.
        """
        self._storage = storage
        self.exclusive = storage.excludes_creators()
        """Whether the store itself keeps two attempts from taking one number. If not, this does what it can."""
        if not self.exclusive:
            logger.warning(
                "%s ignores conditional writes: two attempts that start in the same moment may both believe to be the "
                "only one. Start one job per run, or use a store that honours If-None-Match.",
                storage.url,
            )
        self._chain = _chain(record)
        # The token tells our record from another's of the same number where the store does not.
        document = json.dumps({**record, "token": uuid.uuid4().hex}, indent=1).encode()
        number = _highest(storage) + 1
        while not self._take(number, document):
            number += 1
        self.attempt = number

    def _take(self, number: int, document: bytes) -> bool:
        key = f"{FOLDER}/{number:04d}.json"
        try:
            self._storage.create(key, document)
        except FileExistsError:
            return False
        return self.exclusive or self._storage.read(key) == document

    def check(self) -> None:
        """Pass while this attempt is the newest.

        Raises:
            SupersededError: A newer attempt exists.
            ConfigError: It belongs to another submitted job; starting this one again would only chase it away.
        """
        newest = _highest(self._storage)
        if newest > self.attempt:
            other = _chain(json.loads(self._storage.read(f"{FOLDER}/{newest:04d}.json")))
            if self._chain and other and other != self._chain:
                raise ConfigError(
                    f"two jobs were started for the run {self._storage.url}: {other}, which goes on as attempt "
                    f"{newest}, and {self._chain}, which ends here without writing. Nothing is lost."
                )
            raise SupersededError(
                f"attempt {newest} of {self._storage.url} has started; this is attempt {self.attempt} and it stops "
                "without writing, so that one run has one writer. Nothing is lost: the newer attempt goes on."
            )


def _chain(record: Mapping[str, Any]) -> str:
    """The submitted job that an attempt belongs to; empty when a person started it."""
    scheduler = record.get("scheduler") or {}
    return f"{scheduler['kind']} job {scheduler['chain']}" if scheduler else ""


def _highest(storage: RunStorage) -> int:
    numbers = (_NAME.fullmatch(name) for name in storage.list(FOLDER))
    return max((int(match.group(1)) for match in numbers if match), default=0)
