"""Peak memory of a step as a linear function of its packed tokens, fitted to two measurements."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class MemoryLine:
    """Peak = fixed + tokens x per token."""

    fixed_bytes: float
    """Memory that does not depend on the micro-batch: weights, gradients, moments, workspaces."""
    bytes_per_token: float

    def capacity_tokens(self, usable_bytes: float) -> int:
        """Number of tokens that fit into `usable_bytes`."""
        return max(0, int((usable_bytes - self.fixed_bytes) / self.bytes_per_token))

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the file in a run's folder."""
        return asdict(self)


def fit(one: tuple[int, float], other: tuple[int, float]) -> MemoryLine | None:
    """The line through two measured points.

    Args:
        one: Tokens of a micro-batch, and bytes at the peak.
        other: The same of a micro-batch with more tokens.

    Returns:
        None when the larger micro-batch took no more memory.
    """
    (few, low), (many, high) = one, other
    # Then something else made the peak, and a line without a slope would let any micro-batch fit.
    if many <= few or high <= low:
        return None
    slope = (high - low) / (many - few)
    return MemoryLine(fixed_bytes=low - slope * few, bytes_per_token=slope)


def line_from_json(document: object) -> MemoryLine | None:
    """A line from its plain values; None for anything else: a damaged file only means to measure again."""
    if not isinstance(document, Mapping):
        return None
    try:
        line = MemoryLine(float(document["fixed_bytes"]), float(document["bytes_per_token"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    # A token takes more than a byte and less than a gigabyte of any model; NaN is neither.
    sound = 1 < line.bytes_per_token < 2**30 and 0 <= line.fixed_bytes < 2**50
    return line if sound else None
