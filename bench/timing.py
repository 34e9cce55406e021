"""Rivals in one process, taking turns, so that both meet the same machine."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

_PAGE_BYTES = 4096


def fault_in(size_bytes: int) -> None:
    """Touch so much memory and free it again, so that what comes next finds it whoever came before.

    A virtual machine may give free memory back to its host within seconds. To get it again takes fifty times as long as
    a page that the machine still has: a second for 458 MiB (`python -m bench.fresh_memory`).
    """
    np.empty(size_bytes, np.uint8)[::_PAGE_BYTES] = 1


def taking_turns(rivals: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each rival in each of several rounds, after one that does not count.

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
    return seconds


def ratios(one: Sequence[float], other: Sequence[float]) -> str:
    """Median, least and largest ratio of two rivals within one round: what slows a round down slows both."""
    found = sorted(a / b for a, b in zip(one, other, strict=True))
    return f"{statistics.median(found):.2f}x ({found[0]:.2f} … {found[-1]:.2f})"


def alternate(rivals: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each rival over several rounds, after one that does not count.

    Args:
        rivals: What to time, by name.
        rounds: How often.
    """
    return {name: statistics.median(values) for name, values in taking_turns(rivals, rounds).items()}
