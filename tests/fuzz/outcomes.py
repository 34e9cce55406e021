"""What may become of input from outside: taken, or refused with one message and a code that stops retries."""

import time
from collections.abc import Callable
from typing import TypeVar

from indextts_job.errors import EXIT_CONFIG, EXIT_DATA, EXIT_REFUSED, EXIT_UNAVAILABLE, IndexTTSJobError

T = TypeVar("T")
LONGEST_S = 10.0
LONGEST_MESSAGE = 20_000
"""Characters; a message is not as long as a file."""
REFUSALS = (EXIT_DATA, EXIT_UNAVAILABLE, EXIT_REFUSED, EXIT_CONFIG)


def taken_or_refused(act: Callable[[], T]) -> T | None:
    """The result, or None for a refusal; any other exception passes through and fails the test."""
    began_s = time.monotonic()
    refusal: IndexTTSJobError | None = None
    result: T | None = None
    try:
        result = act()
    except IndexTTSJobError as error:
        refusal = error
    assert time.monotonic() - began_s < LONGEST_S, "a hang"
    if refusal is not None:
        assert refusal.exit_code in REFUSALS, repr(refusal)
        assert str(refusal).strip()
        assert len(str(refusal)) < LONGEST_MESSAGE
    return result
