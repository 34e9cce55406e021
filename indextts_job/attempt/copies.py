"""The copies on this node that an attempt uses. Without torch, because downloads begin before it is imported."""

import os

from indextts_job.config import RunConfig
from indextts_job.hashing import integrity_hash
from indextts_job.scheduler import whole_number
from indextts_job.storage import files
from indextts_job.storage.node_cache import NodeCache, Share, node_folder


def copies_of_inputs(config: RunConfig) -> NodeCache | None:
    """Copies of large inputs; None where none are wanted."""
    return _copies(config, "inputs") if config.storage.node_copies else None


def copies_of_run(config: RunConfig) -> NodeCache | None:
    """Copies of the objects of the run's newest checkpoint; None where none are wanted, or the run is on a disk."""
    if not config.storage.node_copies or files.is_local(config.run):
        return None
    return _copies(config, f"run{integrity_hash(config.run.rstrip('/').encode())}")


def _copies(config: RunConfig, name: str) -> NodeCache:
    # As torchrun sets them.
    share = Share(whole_number(os.environ, "LOCAL_RANK", 0), whole_number(os.environ, "LOCAL_WORLD_SIZE", 1, least=1))
    return NodeCache(node_folder(config.data.cache_folder), name, config.data.cache_free_ratio, share)
