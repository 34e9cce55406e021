"""Hashes of bytes: a fast one for integrity, and SHA-256 for identity.

xxh3-128 tells damaged bytes from whole ones at the speed of memory (`bench/checkpoint.py`), but somebody can make other
bytes with the same hash. So it is used where only accidents count: whoever may write the objects of a run may write
the manifest too. SHA-256 identifies files across runs and machines: base checkpoints, tokenizers, datasets, and copies
in a folder that several users of a node may share.
"""

import hashlib
from typing import TypeAlias

import xxhash

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Contiguous bytes; arrays of NumPy as their `data`."""

INTEGRITY_DIGITS = 32
"""Hexadecimal digits of `integrity_hash`."""


def integrity_hash(content: Buffer) -> str:
    """xxh3-128 of bytes, as `INTEGRITY_DIGITS` hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(content)


def integrity_digest(content: Buffer) -> bytes:
    """xxh3-128 of bytes, as 16 bytes."""
    return xxhash.xxh3_128_digest(content)


def identity_hash(content: Buffer) -> str:
    """SHA-256 of bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
