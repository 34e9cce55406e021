"""Places of several arrays in one buffer, so that all of them are allocated or copied at once."""

from collections.abc import Iterator, Mapping
from typing import Protocol

ALIGNMENT = 64
"""Bytes: offsets are multiples of it, and so of the size of every type and of a cache line."""


class Sized(Protocol):
    """An array of NumPy or a tensor of torch."""

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""


def offsets(arrays: Mapping[str, Sized]) -> Iterator[tuple[str, int, int]]:
    """Name, first byte and end of each array in a common buffer, in their order."""
    end = 0
    for name, array in arrays.items():
        begin = -(-end // ALIGNMENT) * ALIGNMENT
        end = begin + array.nbytes
        yield name, begin, end
