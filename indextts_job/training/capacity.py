"""How many packed tokens a micro-batch may have here, lowered when the device runs out of memory, and remembered.

The capacity decides how a step is cut, never what it computes (I3), so it may change between two tries of one step.
When it cannot go lower, activations are computed again instead of kept.
"""

import contextlib
import json
import re

from indextts_job.checkpoint.storage import RunStorage
from indextts_job.errors import DeviceMemoryError, IndexTTSJobError
from indextts_job.hardware.plan import HardwareFacts, Plan

FOLDER = "hardware"
LOWERED_TO = 0.8
"""Share of the tokens after an out of memory: two or three tries reach what a wrong estimate needs."""


class Capacity:
    """Tokens of a micro-batch on this kind of device, for this run."""

    def __init__(self, plan: Plan, longest: tuple[int, str], storage: RunStorage, facts: HardwareFacts) -> None:
        """Begin with what was planned, or with what an earlier attempt on such a device had to go down to.

        Args:
            plan: Of this attempt.
            longest: Tokens and name of the longest sample: it must fit.
            storage: The run, which remembers.
            facts: The device.
        """
        self._least_tokens, self._longest = longest
        self._storage = storage
        kind = re.sub(r"[^a-z0-9]+", "-", f"{facts.name} {facts.memory_bytes / 2**30:.0f} gib".lower()).strip("-")
        self._key = f"{FOLDER}/{kind}.json"
        self._device = facts.name
        tokens, recompute = self._remembered(plan)
        self.tokens = max(self._least_tokens, min(plan.capacity_tokens, tokens))
        self.recompute = plan.recompute or recompute

    def lower(self, doing: str) -> str:
        """Go down after an out of memory.

        Args:
            doing: What ran out of it.

        Returns:
            What to tell the user.

        Raises:
            DeviceMemoryError: Not even the longest sample fits, with nothing kept.
        """
        before = self.tokens
        if before > self._least_tokens:
            self.tokens = max(self._least_tokens, int(before * LOWERED_TO))
            remedy = f"done again with {self.tokens}"
        elif not self.recompute:
            self.recompute = True
            remedy = "done again without keeping activations"
        else:
            raise DeviceMemoryError(
                f"{doing} does not fit the memory of {self._device}, even with micro-batches of {before} tokens, as "
                f"many as the longest sample, {self._longest}, and no activations kept. Use a larger GPU, leave long "
                "samples out, or free the memory that others use (nvidia-smi). The last checkpoint is intact."
            )
        # Worth keeping, not worth failing for.
        with contextlib.suppress(IndexTTSJobError, OSError):
            document = {"capacity_tokens": self.tokens, "recompute": self.recompute}
            self._storage.write(self._key, json.dumps(document).encode())
        return (
            f"{doing} ran out of memory with micro-batches of up to {before} tokens; {remedy}, which is remembered for "
            f"{self._device}"
        )

    def _remembered(self, plan: Plan) -> tuple[int, bool]:
        try:
            document = json.loads(self._storage.read(self._key))
            return int(document["capacity_tokens"]), bool(document["recompute"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return plan.capacity_tokens, False
