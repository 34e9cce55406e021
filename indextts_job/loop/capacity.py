"""The number of packed tokens that a micro-batch may have on this device.

It is measured, lowered when the device runs out of memory, and stored in the run for later attempts. The capacity
decides how a step is cut, never what it computes (I3), so it may change between two tries of one step. When it cannot
be lowered further, activations are recomputed in the backward pass instead of kept.
"""

import contextlib
import json
import re
from collections.abc import Callable
from typing import Any

from indextts_job.errors import DeviceMemoryError, IndexTTSJobError
from indextts_job.hardware.memory import MemoryLine, line_from_json
from indextts_job.hardware.plan import RECOMPUTED_WORK, HardwareFacts, Plan, measured_share, usable_bytes
from indextts_job.model.memory import Recompute
from indextts_job.report.console import human_bytes
from indextts_job.storage.run_storage import RunStorage

FOLDER = "hardware"
_ORDER: list[Recompute] = list(RECOMPUTED_WORK)
"""By memory: the last needs least."""
LOWERED_TO = 0.8
"""Factor for the tokens after an out of memory. An estimate that is a third too high takes two tries."""


class Capacity:
    """Tokens of a micro-batch on this kind of device, for this run."""

    def __init__(
        self,
        plan: Plan,
        longest: tuple[int, str],
        storage: RunStorage,
        facts: HardwareFacts,
        *,
        may_recompute: bool = True,
    ) -> None:
        """The plan's capacity, or the lower one of an earlier attempt on such a device.

        Args:
            plan: Plan of this attempt.
            longest: Tokens and name of the longest sample, which must fit.
            storage: The run, where measurements and lowered capacities are stored.
            facts: This machine.
            may_recompute: Whether more may be computed again than the plan says, where memory asks for it.
        """
        self._least_tokens, self._longest = longest
        self._storage = storage
        # Name and size: cards of one name are sold with different amounts of memory.
        kind = re.sub(r"[^a-z0-9]+", "-", f"{facts.name} {facts.memory_bytes / 2**30:.0f} gib".lower()).strip("-")
        self._key = f"{FOLDER}/{kind}.json"
        self._facts = facts
        self._share = measured_share(facts, plan)
        self._memory = self._remembered()
        self.tokens = self._bounded(plan.capacity_tokens)
        self._may_recompute = may_recompute
        remembered: Recompute = self._memory.get("recompute", "nothing") if may_recompute else "nothing"
        self.recompute: Recompute = max(plan.recompute, remembered, key=_ORDER.index)

    @property
    def limited(self) -> str:
        """The message about an out of memory of an earlier attempt that limits this one; empty if there was none."""
        if "capacity_tokens" not in self._memory:
            return ""
        return (
            f"micro-batches of up to {self.tokens} tokens, because an earlier attempt ran out of memory on "
            f"{self._facts.name}; remove {self._key} from the run to forget it"
        )

    def measure(self, what: str, measured: Callable[[], MemoryLine | None]) -> str:
        """Replace the estimate of the plan by a measurement.

        Args:
            what: The conditions of the measurement. One that an earlier attempt has made under the same is reused.
            measured: Measures; activations are kept or recomputed, as `recompute` says.

        Returns:
            The message for the user; empty when nothing could be measured.
        """
        planned = self.recompute
        while True:
            line, earlier = self._line(what, measured)
            tokens = line.capacity_tokens(usable_bytes(self._facts, self._share)) if line else 0
            if tokens >= self._least_tokens or not self._recompute_more():
                break
            # Measured again: recomputing changes the bytes per token, and so the line.
        if line is None:
            self.recompute = planned
            return ""
        self.tokens = self._bounded(tokens)
        whence = "measured by an earlier attempt" if earlier else "measured"
        return (
            f"{whence}: {human_bytes(int(line.fixed_bytes))} and {human_bytes(int(1000 * line.bytes_per_token))} per "
            f"1000 tokens; micro-batches of up to {self.tokens} tokens"
        )

    @property
    def compiled(self) -> bool | None:
        """Whether earlier attempts on this kind of device compiled the blocks; None if it was not decided."""
        found = self._memory.get("compiled")
        return found if isinstance(found, bool) else None

    def remember_compiled(self, compiled: bool) -> None:  # noqa: FBT001
        """Store the decision for later attempts: compiled kernels round otherwise, and a run must keep its bits."""
        if self.compiled != compiled:
            self._memory["compiled"] = compiled
            self._keep()

    def _recompute_more(self) -> bool:
        """Keep less; False when nothing more can be computed again, or may be."""
        more = _ORDER[_ORDER.index(self.recompute) + 1 :] if self._may_recompute else []
        if more:
            self.recompute = more[0]
        return bool(more)

    def _line(self, what: str, measured: Callable[[], MemoryLine | None]) -> tuple[MemoryLine | None, bool]:
        """The measured line, and whether it is that of an earlier attempt."""
        key = what if self.recompute == "nothing" else f"{what}, {self.recompute} computed again"
        lines = self._memory.setdefault("measured", {})
        if earlier := line_from_json(lines.get(key)):
            return earlier, True
        line = measured()
        if line:
            # Stored at once: a measurement takes seconds, and spot machines come and go.
            lines[key] = line.to_json()
            self._keep()
        return line, False

    def lower(self, doing: str) -> str:
        """Lower the capacity after an out of memory.

        Args:
            doing: The work that ran out of memory.

        Returns:
            The message for the user.

        Raises:
            DeviceMemoryError: Not even the longest sample fits, with recomputed activations.
        """
        before = self.tokens
        # Smaller micro-batches first: they cost less speed than recomputing every activation.
        if before > self._least_tokens:
            self.tokens = max(self._least_tokens, int(before * LOWERED_TO))
            remedy = f"done again with {self.tokens}"
        elif self._recompute_more():
            remedy = f"done again with activations computed again ({self.recompute})"
        else:
            raise DeviceMemoryError(
                f"{doing} does not fit the memory of {self._facts.name}, even with micro-batches of {before} tokens, "
                f"as many as the longest sample, {self._longest}, and as little kept as hardware.recompute allows. Use "
                "a larger GPU, leave long samples out, or free the memory that others use (nvidia-smi). The last "
                "checkpoint is intact."
            )
        self._memory |= {"capacity_tokens": self.tokens, "recompute": self.recompute}
        self._keep()
        return (
            f"{doing} ran out of memory with micro-batches of up to {before} tokens; {remedy}, which is remembered for "
            f"{self._facts.name}"
        )

    def _bounded(self, tokens: int) -> int:
        """At least the longest sample, at most the capacity that an earlier out of memory has led to."""
        left: int = self._memory.get("capacity_tokens", tokens)
        return max(self._least_tokens, min(tokens, left))

    def _keep(self) -> None:
        # Without this record the next attempt measures again; that is no reason to end this one.
        with contextlib.suppress(IndexTTSJobError, OSError):
            self._storage.write(self._key, json.dumps(self._memory).encode())

    def _remembered(self) -> dict[str, Any]:
        try:
            document = json.loads(self._storage.read(self._key))
            sound = (
                isinstance(document.get("capacity_tokens", 1), int)
                and isinstance(document.get("measured", {}), dict)
                and document.get("recompute", "nothing") in _ORDER
            )
            return document if sound else {}
        except (FileNotFoundError, ValueError, AttributeError, RecursionError):
            # A damaged record counts as none: the attempt measures, or starts from the plan.
            return {}
