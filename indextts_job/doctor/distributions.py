"""Histograms as lines of text."""

import math
from collections.abc import Sequence

ROWS = 8
WIDTH = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def histogram(values: Sequence[float], unit: str, least_step: float = 0.0) -> tuple[str, ...]:
    """A histogram: for each step a line of range, bar and count. Steps are 1, 2 or 5 times a power of ten.

    Args:
        values: At least one value.
        unit: Unit of the values.
        least_step: Smallest width of a step; 1 for whole numbers.
    """
    low, high = min(values), max(values)
    step = _round_step(max(least_step, (high - low) / ROWS))
    first = math.floor(low / step)
    counts = [0] * (math.floor(high / step) - first + 1)
    for value in values:
        counts[math.floor(value / step) - first] += 1
    most = max(counts)
    edge = max(len(f"{(first + index + 1) * step:g}") for index in range(len(counts)))
    return tuple(
        f"{(first + index) * step:>{edge}g} … {(first + index + 1) * step:<{edge}g} {unit} {_bar(count / most)} {count}"
        for index, count in enumerate(counts)
    )


def _round_step(wanted: float) -> float:
    """The smallest of …, 1, 2, 5, 10, 20, … that is not below `wanted`."""
    if wanted <= 0:  # all values are equal
        return 1.0
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= wanted)


def _bar(share: float) -> str:
    # Rounded up, so that a step with few values does not look empty.
    eighths = math.ceil(share * WIDTH * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (_EIGHTHS[rest] if rest else "")).ljust(WIDTH)
