"""Indexes of sharded datasets that say something else than the one they were made of, with hashes that fit."""

from collections.abc import Callable
from typing import Any

from indextts_job.data.containers import arrays_of, header_of, written

Change = Callable[[dict[str, Any], dict[str, Any]], object]
"""Changes header and arrays in place."""


def changed_index(content: bytes, change: Change) -> bytes:
    """An index with another header and other arrays that vouches for itself: only what it says is wrong."""
    header = header_of(content)
    arrays = {name: array.copy() for name, array in arrays_of(content, header).items()}
    change(header, arrays)
    return written({name: value for name, value in header.items() if name != "tensors_hash"}, arrays)
