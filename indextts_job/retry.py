"""How long and how patiently an operation on remote storage is tried again. Pure: delays from numbers."""

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """Object stores: how to reach them and how patient to be."""

    endpoint_url: str = ""
    """Endpoint of an S3-compatible store; empty = AWS, or what the usual AWS environment variables say."""
    retry_seconds: float = 120.0
    """How long a failing operation is tried again before the attempt ends with 69."""
    log_interval_seconds: float = 10.0
    """Events and curves reach an object store at least this often; a kill loses no more than that of them."""


FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 15.0


def delays(limit_s: float, chance: random.Random) -> Iterator[float]:
    """Seconds to wait before each further try, until their sum would pass the limit.

    Exponential with full jitter, so that many nodes do not hit a sick store in step (Brooker, "Exponential Backoff
    And Jitter", AWS Architecture Blog 2015); at least half of each step is waited.

    Args:
        limit_s: Bound of the sum.
        chance: Source of the jitter.
    """
    waited_s, step_s = 0.0, FIRST_DELAY_S
    while waited_s < limit_s:
        delay_s = min(step_s * chance.uniform(0.5, 1.0), limit_s - waited_s)
        yield delay_s
        waited_s += delay_s
        step_s = min(2 * step_s, LONGEST_DELAY_S)
