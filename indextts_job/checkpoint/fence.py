"""One writer per run (I5): every attempt takes a number, and only the highest one may commit.

A node that lost its network can wake up after its successor has gone on. It then finds a higher number and stops; what
it had written so far is named by no manifest and harmless.
"""

import json
import logging
import re
import uuid

from indextts_job.checkpoint.attempt_record import AttemptRecord, parse_record
from indextts_job.checkpoint.manifest import MANIFESTS, parse_file_name
from indextts_job.errors import ConfigError, SupersededError, UnavailableError
from indextts_job.storage.run_storage import RunStorage

logger = logging.getLogger(__name__)

FOLDER = "attempts"
MOST_TRIES = 1000
"""Numbers that may be taken by others while one is looked for."""
_NAME = re.compile(r"(\d{4,})\.json")


class Fence:
    """The right to write into a run, until somebody takes the next number."""

    def __init__(self, storage: RunStorage, record: AttemptRecord) -> None:
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
        self._chain = record.chain
        # The token tells our record from another's of the same number where the store does not.
        document = json.dumps({**record.to_json(), "token": uuid.uuid4().hex}, indent=1).encode()
        first = _highest(storage) + 1
        for number in range(first, first + MOST_TRIES):
            if self._take(number, document):
                self.attempt = number
                return
        raise UnavailableError(
            f"{storage.url}/{FOLDER}: none of the numbers {first} to {first + MOST_TRIES - 1} could be taken. "
            "Something there refuses new files, or very many attempts start at the same time."
        )

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
            other = self._record(newest).chain
            if self._chain and other and other != self._chain:
                raise ConfigError(
                    f"two jobs were started for the run {self._storage.url}: {other}, which goes on as attempt "
                    f"{newest}, and {self._chain}, which ends here without writing. Nothing is lost."
                )
            raise SupersededError(
                f"attempt {newest} of {self._storage.url} has started; this is attempt {self.attempt} and it stops "
                "without writing, so that one run has one writer. Nothing is lost: the newer attempt goes on."
            )

    def _record(self, number: int) -> AttemptRecord:
        try:
            return parse_record(self._storage.read(f"{FOLDER}/{number:04d}.json"))
        except FileNotFoundError:  # only a checkpoint tells of that attempt
            return AttemptRecord()


def _highest(storage: RunStorage) -> int:
    """The highest attempt number that the run knows of, wherever it stands: records may be lost, commits rank by it."""
    taken = (_NAME.fullmatch(name) for name in storage.list(FOLDER))
    committed = (parse_file_name(name) for name in storage.list(MANIFESTS))
    return max(
        max((int(match.group(1)) for match in taken if match), default=0),
        max((name.attempt for name in committed if name), default=0),
    )
