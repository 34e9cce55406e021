"""How many packed tokens a micro-batch may have here: measured, lowered when the device runs out of memory, remembered.

The capacity decides how a step is cut, never what it computes (I3), so it may change between two tries of one step.
When it cannot go lower, activations are computed again instead of kept.
"""

import contextlib
import json
import re
from collections.abc import Callable
from typing import Any

from indextts_job.errors import DeviceMemoryError, IndexTTSJobError
from indextts_job.hardware.memory import MEASURED_SHARE, MemoryLine, line_from_json
from indextts_job.hardware.plan import HardwareFacts, Plan, usable_bytes
from indextts_job.report.console import human_bytes
from indextts_job.storage.run_storage import RunStorage

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
        self._facts = facts
        self._memory = self._remembered()
        self.tokens = self._bounded(plan.capacity_tokens)
        self.recompute = plan.recompute or bool(self._memory.get("recompute"))

    def measure(self, what: str, measured: Callable[[], MemoryLine | None], *, may_recompute: bool) -> str:
        """Replace the estimate of the plan by what a measurement says.

        Args:
            what: For which the measurement holds; an earlier attempt's is taken when it was for the same.
            measured: Measures with the activations kept or computed again, as `recompute` says.
            may_recompute: Whether to compute activations again when the longest sample does not fit otherwise.

        Returns:
            What to tell the user; empty when nothing could be measured.
        """
        while True:
            key = f"{what}, recompute" if self.recompute else what
            lines = self._memory.setdefault("measured", {})
            earlier = line_from_json(lines.get(key))
            line = earlier or measured()
            if line is None:
                return ""
            if earlier is None:
                lines[key] = line.to_json()
                self._keep()
            tokens = line.capacity_tokens(usable_bytes(self._facts, MEASURED_SHARE))
            if tokens >= self._least_tokens or self.recompute or not may_recompute:
                break
            self.recompute = True
        self.tokens = self._bounded(tokens)
        whence = "measured by an earlier attempt" if earlier else "measured"
        return (
            f"{whence}: {human_bytes(int(line.fixed_bytes))} and {human_bytes(int(1000 * line.bytes_per_token))} per "
            f"1000 tokens; micro-batches of up to {self.tokens} tokens"
        )

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
                f"{doing} does not fit the memory of {self._facts.name}, even with micro-batches of {before} tokens, "
                f"as many as the longest sample, {self._longest}, and no activations kept. Use a larger GPU, leave "
                "long samples out, or free the memory that others use (nvidia-smi). The last checkpoint is intact."
            )
        self._memory |= {"capacity_tokens": self.tokens, "recompute": self.recompute}
        self._keep()
        return (
            f"{doing} ran out of memory with micro-batches of up to {before} tokens; {remedy}, which is remembered for "
            f"{self._facts.name}"
        )

    def _bounded(self, tokens: int) -> int:
        """At least the longest sample, at most what an out of memory has left."""
        left: int = self._memory.get("capacity_tokens", tokens)
        return max(self._least_tokens, min(tokens, left))

    def _keep(self) -> None:
        # Worth keeping, not worth failing for.
        with contextlib.suppress(IndexTTSJobError, OSError):
            self._storage.write(self._key, json.dumps(self._memory).encode())

    def _remembered(self) -> dict[str, Any]:
        try:
            document = json.loads(self._storage.read(self._key))
            sound = isinstance(document.get("capacity_tokens", 1), int) and isinstance(
                document.get("measured", {}), dict
            )
            return document if sound else {}
        except (FileNotFoundError, ValueError, AttributeError):
            return {}
