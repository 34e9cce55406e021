"""How object stores are reached, and how patient the program is with them."""

from dataclasses import dataclass
from typing import Annotated

from indextts_job.bounds import Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """Object stores: how to reach them and how patient to be."""

    endpoint_url: str = ""
    """Endpoint of an S3-compatible store; empty = AWS, or what the usual AWS environment variables say."""
    retry_seconds: Annotated[float, Bounds(0, 1e8)] = 120.0
    """How long a failing operation is tried again, tries and pauses together, before the attempt ends with 69."""
    log_interval_seconds: Annotated[float, Bounds(0.1, 1e6)] = 10.0
    """Events and curves reach an object store at least this often; a kill loses no more than that of them."""
