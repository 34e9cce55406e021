"""Rivals in one process, taking turns, so that both meet the same machine."""

import statistics
import time
from collections.abc import Callable, Mapping


def alternate(rivals: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each rival over several rounds, after one that does not count.

    Args:
        rivals: What to time, by name.
        rounds: How often.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(rounds + 1):
        for name, work in rivals.items():
            started_s = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - started_s)
    return {name: statistics.median(values) for name, values in seconds.items()}
