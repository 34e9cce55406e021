"""Settings for object stores: the endpoint, and for how long failing operations are retried."""

from dataclasses import dataclass
from typing import Annotated

from indextts_job.bounds import Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """Object stores: how to reach them and how long to retry."""

    endpoint_url: str = ""
    """Endpoint of an S3-compatible store; empty = AWS, or what the usual AWS environment variables say."""
    retry_seconds: Annotated[float, Bounds(0, 1e8)] = 120.0
    """How long a failing operation is retried, tries and pauses together, before the attempt ends with exit code 69."""
    log_interval_seconds: Annotated[float, Bounds(0.1, 1e6)] = 10.0
    """Events and curves are written to an object store at least this often; a kill loses no more than that of them."""
    node_copies: bool = True
    """Keep copies of the base checkpoint and of the newest checkpoint of a run in a bucket on this node's disk (in
    `data.cache_folder`), for the next attempt on it and for its other processes."""
