"""Cyclomatic complexity of the code, by radon: ends with 1 when it is beyond the limits of the house.

python -m tests.support.complexity
"""

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from radon.complexity import cc_visit

if TYPE_CHECKING:
    from radon.visitors import Class, Function

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("indextts_job", "launch")
MOST_MEAN, MOST_OF_NINE_TENTHS, MOST = 3.0, 6, 12
"""Of all functions and classes; a class counts as radon has it, with the mean of its methods."""


def blocks(path: Path) -> Iterator[tuple[int, str]]:
    """Complexity and place of every function, method and class of a file."""
    found: list[Class | Function] = cc_visit(path.read_text(encoding="utf-8"))
    for block in found:
        yield block.complexity, f"{path.relative_to(REPOSITORY)}:{block.lineno} {block.fullname}"


def main() -> int:
    files = [path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]
    every = sorted((block for path in files for block in blocks(path)), reverse=True)
    numbers = sorted(number for number, _ in every)
    mean, nine_tenths = statistics.mean(numbers), numbers[int(0.9 * len(numbers))]
    print(f"complexity of {len(every)} blocks: mean {mean:.2f}, 90 % <= {nine_tenths}, most {numbers[-1]}")  # noqa: T201
    if mean <= MOST_MEAN and nine_tenths <= MOST_OF_NINE_TENTHS and numbers[-1] <= MOST:
        return 0
    print(f"expected: mean <= {MOST_MEAN}, 90 % <= {MOST_OF_NINE_TENTHS}, most <= {MOST}. The most complex ones:")  # noqa: T201
    print(*(f"{number:4} {place}" for number, place in every[:10]), sep="\n")  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
