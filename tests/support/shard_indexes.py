"""Indexes of sharded datasets that say something else than the one they were made of, with hashes that fit."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import safetensors.numpy

from indextts_job.data.shard_index import METADATA, tensors_hash

Change = Callable[[dict[str, Any], dict[str, Any]], object]
"""Changes header and arrays in place."""


def changed_index(content: bytes, change: Change) -> bytes:
    """An index with another header and other arrays that vouches for itself: only what it says is wrong."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][METADATA].partition(" ")[2])
    arrays = dict(safetensors.numpy.load(content))
    change(header, arrays)
    if "tensors_sha256" in header:
        header["tensors_sha256"] = tensors_hash(safetensors.numpy.save(arrays))
    text = json.dumps(header, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return bytes(safetensors.numpy.save(arrays, {METADATA: f"{digest} {text}"}))
