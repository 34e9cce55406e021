"""What fresh memory costs: pages that the machine has, and pages that it has to get from its host.

A virtual machine with free page reporting gives free memory back after about two seconds, and one that has just booted
has not got it yet. Every load, save and start that allocates pays for that, and of rivals who take turns the one who
comes later pays more. So the benches of loads, saves and starts touch memory before each turn (`timing.fault_in`).

    python -m bench.fresh_memory [--mebibytes 458] [--rounds 5]
"""

import argparse
import statistics
import time

import numpy as np

RESTS_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)


def first_touch_s(size_bytes: int) -> float:
    """Seconds to allocate memory and to touch each of its pages."""
    started_s = time.perf_counter()
    np.empty(size_bytes, np.uint8)[::4096] = 1
    return time.perf_counter() - started_s


def main() -> None:
    """Print one row for each time of rest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=458)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    size = given.mebibytes * 2**20
    first_touch_s(size)
    print(f"{'free for':>10}{'first touch of ' + str(given.mebibytes) + ' MiB':>32}")
    for rest_s in RESTS_S:
        found = []
        for _ in range(given.rounds):
            time.sleep(rest_s)
            found.append(first_touch_s(size))
        spread = f"({min(found) * 1000:.0f} … {max(found) * 1000:.0f})"
        print(f"{rest_s:>8.1f} s{statistics.median(found) * 1000:>20.0f} ms {spread}")


if __name__ == "__main__":
    main()
