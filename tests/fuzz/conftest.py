"""Bounds for every input: some time, and little more memory than the process has already."""

import resource
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

SPARE_BYTES = 3 * 2**30
"""An input that has more memory taken for it than this lies about its size."""


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """An allocation on the word of a file fails here, and with it the test."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries warn of what they are fed
        yield
    resource.setrlimit(resource.RLIMIT_AS, before)
