"""Peak memory of a step as a line over its packed tokens, fitted to what was measured."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MEASURED_SHARE = 0.9
"""Share of the device's memory to use by a measured line: what it cannot know is fragmentation."""


@dataclass(frozen=True, slots=True)
class MemoryLine:
    """Peak = fixed + tokens x per token."""

    fixed_bytes: float
    """Weights, gradients, moments and whatever else does not depend on the micro-batch."""
    bytes_per_token: float

    def capacity_tokens(self, usable_bytes: float) -> int:
        """How many tokens fit."""
        return max(0, int((usable_bytes - self.fixed_bytes) / self.bytes_per_token))

    def to_json(self) -> dict[str, Any]:
        """As it is kept in a run's folder."""
        return asdict(self)


def fit(one: tuple[int, float], other: tuple[int, float]) -> MemoryLine | None:
    """The line through two measured points.

    Args:
        one: Tokens, and bytes at the peak.
        other: Likewise, with more tokens.

    Returns:
        None when the larger one took no more: whatever was measured, it was not the micro-batch.
    """
    (few, low), (many, high) = one, other
    if many <= few or high <= low:
        return None
    slope = (high - low) / (many - few)
    return MemoryLine(fixed_bytes=low - slope * few, bytes_per_token=slope)


def line_from_json(document: object) -> MemoryLine | None:
    """A line that was kept; None for anything else."""
    if not isinstance(document, Mapping):
        return None
    try:
        line = MemoryLine(float(document["fixed_bytes"]), float(document["bytes_per_token"]))
    except (KeyError, TypeError, ValueError):
        return None
    return line if line.bytes_per_token > 0 else None
