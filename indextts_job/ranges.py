"""Large remote files of known size as parallel ranged requests.

A request for a whole file asks for its size first and reads it as one stream; ranges of a file whose size is known do
neither, which is twice as fast on one endpoint (`bench/checkpoint.py`).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
PART_BYTES = 8 * 2**20
"""One request; large enough that its latency does not count, small enough that one failure costs little."""
PARALLEL = 16
"""Requests at a time."""


def fetch_range(filesystem: Any, path: str, start: int, stop: int) -> bytes:  # noqa: ANN401  # fsspec ships no types
    """Bytes [start, stop) of a remote file; fewer when it ends before."""
    try:
        return bytes(filesystem.cat_file(path, start=start, end=stop))
    except OSError as error:
        # Behind the end, S3 answers 416 where other stores give nothing.
        answer = getattr(error.__cause__, "response", None) or {}
        if answer.get("ResponseMetadata", {}).get("HTTPStatusCode") == 416:
            return b""
        raise


class PartReader:
    """Reads files in parts; threads are started when they are first needed."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def read(self, fetch: Callable[[int, int], bytes], size_bytes: int) -> Bytes:
        """A file of `size_bytes`, as far as it goes.

        Args:
            fetch: Gives the bytes [start, stop), fewer at the end of the file.
            size_bytes: Expected size.
        """
        content = np.empty(size_bytes, np.uint8)

        def place(start: int) -> int:
            part = fetch(start, min(start + PART_BYTES, size_bytes))
            content[start : start + len(part)] = np.frombuffer(part, np.uint8)
            return len(part)

        starts = range(0, size_bytes, PART_BYTES)
        if len(starts) == 1:
            received = place(0)
        else:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="parts")
            received = sum(self._pool.map(place, starts))
        return content[:received]
