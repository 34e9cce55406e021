"""One writer per run (I5): every attempt takes a number, and only the highest one may commit.

A node that lost its network may return after another attempt has taken over. It then finds a higher number and stops.
What it has written is named by no manifest, so no reader sees it.
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
"""Numbers to try. A storage that answers every create with "exists" would otherwise be asked for ever."""
_NAME = re.compile(r"(\d{4,})\.json")


class Fence:
    """The right to write to a run, until another attempt takes the next number."""

    def __init__(self, storage: RunStorage, record: AttemptRecord, *, exclusive: bool | None = None) -> None:
        """Take the next attempt number.

        Args:
            record: What to write down about this attempt.
            exclusive: `RunStorage.excludes_creators`, if it is known already; None = it is found out here.
        """
        self._storage = storage
        self.exclusive = storage.excludes_creators() if exclusive is None else exclusive
        """Whether the store refuses to create a key twice. If it does not, `_take` reads the record back instead."""
        # Some S3-compatible stores accept If-None-Match and ignore it: the lock always succeeds there. Two writers are
        # then told apart when one of them sees the other's higher number.
        if not self.exclusive:
            logger.warning(
                "%s ignores conditional writes: two attempts that start in the same moment may both believe to be the "
                "only one. Start one job per run, or use a store that honours If-None-Match.",
                storage.url,
            )
        self._chain = record.chain
        # Two attempts may write equal records in the same second. This makes each record unique, so that reading it
        # back shows whose create came last on a store that ignores the condition.
        self._document = json.dumps({**record.to_json(), "unique": uuid.uuid4().hex}, indent=1).encode()
        # A listing followed by a create would race on its own; the create decides. The listing only saves useless
        # tries.
        first = _highest(storage) + 1
        for number in range(first, first + MOST_TRIES):
            if self._take(number):
                self.attempt = number
                return
        raise UnavailableError(
            f"{storage.url}/{FOLDER}: none of the numbers {first} to {first + MOST_TRIES - 1} could be taken. "
            "Something there refuses new files, or very many attempts start at the same time."
        )

    def _take(self, number: int) -> bool:
        try:
            self._storage.create(_key(number), self._document)
        except FileExistsError:
            return False
        # Where the store ignores the condition, the later of two creators overwrites the record and keeps the number.
        # It may do so behind this read; then `check` sees it.
        return self.exclusive or self._storage.read(_key(number)) == self._document

    def check(self) -> None:
        """Pass while this attempt is the newest.

        Raises:
            SupersededError: A newer attempt exists.
            ConfigError: The newer attempt belongs to another submitted job, so this job must not be started again.
        """
        newest = _highest(self._storage)
        if newest > self.attempt or self._overwritten():
            other = self._record(newest).chain
            # A requeued job has the chain of its predecessor: then exit code 75 makes its launcher start it again. Two
            # different jobs would supersede each other for ever, so the loser ends for good.
            if self._chain and other and other != self._chain:
                raise ConfigError(
                    f"two jobs were started for the run {self._storage.url}: {other}, which goes on as attempt "
                    f"{newest}, and {self._chain}, which ends here without writing. Nothing is lost."
                )
            mine = f"attempt {self.attempt}" if newest > self.attempt else "another one of the same number"
            raise SupersededError(
                f"attempt {newest} of {self._storage.url} has started; this is {mine} and it stops "
                "without writing, so that one run has one writer. Nothing is lost: the newer attempt goes on."
            )

    def _overwritten(self) -> bool:
        """Whether another attempt, on a store that ignores the condition, has taken this number too."""
        if self.exclusive:
            return False
        try:
            return self._storage.read(_key(self.attempt)) != self._document
        except FileNotFoundError:  # removed, by a user say
            return False

    def _record(self, number: int) -> AttemptRecord:
        try:
            return parse_record(self._storage.read(_key(number)))
        except FileNotFoundError:  # the record is lost, and only the name of a checkpoint has the number
            return AttemptRecord()


def _key(number: int) -> str:
    return f"{FOLDER}/{number:04d}.json"


def _highest(storage: RunStorage) -> int:
    """The highest attempt number in the records and in the names of checkpoints; 0 in a new run."""
    # Both folders count. A partial copy of a run may lack `attempts/`; numbers that began at 1 again would rank every
    # new checkpoint below the old ones.
    taken = (_NAME.fullmatch(name) for name in storage.list(FOLDER))
    committed = (parse_file_name(name) for name in storage.list(MANIFESTS))
    return max(
        max((int(match.group(1)) for match in taken if match), default=0),
        max((name.attempt for name in committed if name), default=0),
    )
