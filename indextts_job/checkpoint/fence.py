"""One writer per run (I5): every attempt takes a number, and only the highest one may commit.

A node that lost its network can wake up after its successor has gone on. It then finds a higher number and stops; what
it had written so far is named by no manifest and harmless.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from indextts_job.checkpoint.storage import RunStorage
from indextts_job.errors import SupersededError

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
        number = _highest(storage) + 1
        while True:
            try:
                storage.create(f"{FOLDER}/{number:04d}.json", json.dumps(dict(record), indent=1).encode())
            except FileExistsError:
                number += 1
            else:
                self.attempt = number
                return

    def check(self) -> None:
        """Pass while this attempt is the newest.

        Raises:
            SupersededError: A newer attempt exists.
        """
        newest = _highest(self._storage)
        if newest > self.attempt:
            raise SupersededError(
                f"attempt {newest} of {self._storage.url} has started; this is attempt {self.attempt} and it stops "
                "without writing, so that one run has one writer. Nothing is lost: the newer attempt goes on."
            )


def _highest(storage: RunStorage) -> int:
    numbers = (_NAME.fullmatch(name) for name in storage.list(FOLDER))
    return max((int(match.group(1)) for match in numbers if match), default=0)
