"""Arrays with a header of our own in one safetensors file. Nothing of it is believed before its hashes fit.

The arrays are views of the bytes, so a file of hundreds of megabytes is in memory once. The hashes tell damaged bytes
from whole ones; what the bytes say is checked by the readers of each kind of file.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from indextts_job.hashing import integrity_hash

METADATA = "indextts_job"
_LONGEST_HEADER_BYTES = 2**30
_DTYPES = {"U8": np.uint8, "I32": np.int32, "I64": np.int64}
"""Types of arrays that we store; the format knows others."""

StoredArrays = Mapping[str, npt.NDArray[Any]]


def written(header: Mapping[str, Any], arrays: StoredArrays) -> bytes:
    """The bytes of a file.

    Args:
        header: Plain values.
        arrays: Arrays of the types in `_DTYPES`.
    """
    tensors = dict(arrays)
    # The header has the hash of the arrays, and the text before it the hash of the header.
    places, data = _parts(safetensors.numpy.save(tensors))
    text = json.dumps({**header, "tensors_hash": _tensors_hash(places, data)}, sort_keys=True)
    return bytes(safetensors.numpy.save(tensors, {METADATA: f"{integrity_hash(text.encode())} {text}"}))


def header_of(content: bytes) -> dict[str, Any]:
    """Our header.

    Raises:
        ValueError, LookupError, TypeError, AttributeError, RecursionError: The file is damaged, or none of ours.
    """
    digest, _, text = _parts(content)[0]["__metadata__"][METADATA].partition(" ")
    if integrity_hash(text.encode()) != digest:
        raise ValueError("its header does not have the hash in front of it")
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError(f"its header is a {type(header).__name__}")
    return header


def arrays_of(content: bytes, header: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """The arrays, read-only.

    Raises:
        ValueError, LookupError, TypeError: The file is damaged, or none of ours.
    """
    places, data = _parts(content)
    if _tensors_hash(places, data) != header["tensors_hash"]:
        raise ValueError("its bytes do not have the hash that it names")
    return {name: _array(entry, data) for name, entry in places.items() if name != "__metadata__"}


def _parts(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """The header of the safetensors file, and the bytes behind it."""
    size = int.from_bytes(content[:8], "little")
    if size > min(len(content) - 8, _LONGEST_HEADER_BYTES):
        raise ValueError(f"{len(content)} bytes do not hold a header of {size}")
    return json.loads(content[8 : 8 + size]), memoryview(content)[8 + size :]


def _tensors_hash(places: Mapping[str, Any], data: memoryview) -> str:
    """Hash of a safetensors file without its metadata: names, types, positions and bytes of its arrays."""
    # Without the metadata, because the hash is itself stored there.
    named = {name: entry for name, entry in places.items() if name != "__metadata__"}
    return integrity_hash(json.dumps([named, integrity_hash(data)], sort_keys=True).encode())


def _array(entry: Mapping[str, Any], data: memoryview) -> npt.NDArray[Any]:
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    (begin, end), shape = entry["data_offsets"], entry["shape"]
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError("an array has no place")
    if end > len(data) or end - begin != dtype.itemsize * math.prod(shape):
        raise ValueError("an array does not fill its place")
    # As bytes first: an empty array may lie at the end, where `frombuffer` would find nothing.
    return np.frombuffer(data[begin:end], np.uint8).view(dtype).reshape(shape)
