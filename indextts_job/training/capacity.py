"""How many packed tokens a micro-batch may have here, lowered when the device runs out of memory, and remembered.

The capacity decides how a step is cut, never what it computes (I3), so it may change between two tries of one step.
"""

import contextlib
import json
import re

from indextts_job.checkpoint.storage import RunStorage
from indextts_job.errors import DeviceMemoryError, IndexTTSJobError
from indextts_job.hardware.plan import HardwareFacts

FOLDER = "hardware"
LOWERED_TO = 0.8
"""Share of the tokens after an out of memory: two or three tries reach what a wrong estimate needs."""


class Capacity:
    """Tokens of a micro-batch on this kind of device, for this run."""

    def __init__(self, tokens: int, least_tokens: int, storage: RunStorage, facts: HardwareFacts) -> None:
        """Begin with what was planned, or with what an earlier attempt on such a device had to go down to.

        Args:
            tokens: Planned.
            least_tokens: Of the longest sample: one must fit.
            storage: The run, which remembers.
            facts: The device.
        """
        self._least_tokens = least_tokens
        self._storage = storage
        kind = re.sub(r"[^a-z0-9]+", "-", f"{facts.name} {facts.memory_bytes / 2**30:.0f} gib".lower()).strip("-")
        self._key = f"{FOLDER}/{kind}.json"
        self._device = facts.name
        self.planned_tokens = tokens
        self.tokens = max(least_tokens, min(tokens, self._remembered()))

    def lower(self, doing: str) -> str:
        """Go down after an out of memory.

        Args:
            doing: What ran out of it.

        Returns:
            What to tell the user.

        Raises:
            DeviceMemoryError: Micro-batches hold no more than the longest sample already.
        """
        if self.tokens <= self._least_tokens:
            raise DeviceMemoryError(
                f"{doing} does not fit the memory of {self._device}, even with micro-batches of {self.tokens} tokens, "
                "the longest sample. Use a larger GPU, leave long samples out, or free the memory that others use "
                "(nvidia-smi). The last checkpoint is intact."
            )
        before, self.tokens = self.tokens, max(self._least_tokens, int(self.tokens * LOWERED_TO))
        # Worth keeping, not worth failing for.
        with contextlib.suppress(IndexTTSJobError, OSError):
            self._storage.write(self._key, json.dumps({"capacity_tokens": self.tokens}).encode())
        return (
            f"{doing} ran out of memory with micro-batches of up to {before} tokens; done again with {self.tokens}, "
            f"which is remembered for {self._device}"
        )

    def _remembered(self) -> int:
        try:
            return int(json.loads(self._storage.read(self._key))["capacity_tokens"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return self.planned_tokens
