"""Parse `.npy` files strictly: no pickle, no missing and no trailing bytes."""

import ast
import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

_MAGIC = b"\x93NUMPY"
LARGEST_HEADER_BYTES = 2**16
"""numpy's own headers have 128 bytes; a very long one would only cost time and stack in the parser."""
_NUMBERS = "?biufc"
"""Values of `dtype.kind` that stand for numbers."""


class NpyFormatError(ValueError):
    """The bytes are not a complete array file; the message says what is wrong with them."""


def parse_npy(content: bytes) -> npt.NDArray[np.generic]:
    """The array in a `.npy` file of format 1 to 3 (numpy's NEP 1).

    Args:
        content: The whole file.

    Returns:
        A read-only array over the same memory.

    Raises:
        NpyFormatError: Not an array of numbers, truncated, or with trailing bytes.
    """
    # Not `numpy.load`, which evaluates the header again for each of some 400,000 files. Equal headers are parsed once
    # here.
    start, stop = _header_range(content)
    dtype, fortran, shape = _header(content[start:stop])
    expected = stop + dtype.itemsize * math.prod(shape)
    if len(content) != expected:
        kind = "truncated" if len(content) < expected else "trailing bytes"
        raise NpyFormatError(f"{kind}: {len(content)} bytes, its header says {expected}")
    array = np.frombuffer(content, dtype=dtype, offset=stop)
    try:
        return array.reshape(shape, order="F" if fortran else "C")
    except ValueError as error:  # an empty array whose other sizes overflow
        raise NpyFormatError(f"impossible shape {list(shape)}") from error


def _header_range(content: bytes) -> tuple[int, int]:
    """First byte of the header, and first byte after it."""
    if not content.startswith(_MAGIC) or len(content) < 10:
        raise NpyFormatError("not a .npy file" if content else "empty file")
    # The header's length follows magic and version: two bytes in version 1, four from version 2 on.
    start = 12 if content[6] >= 2 else 10
    header_size = int.from_bytes(content[8:start], "little")
    if header_size > LARGEST_HEADER_BYTES:
        raise NpyFormatError(f"a header of {header_size} bytes")
    return start, start + header_size


@lru_cache(maxsize=4096)
def _header(raw: bytes) -> tuple[np.dtype[np.generic], bool, tuple[int, ...]]:
    """dtype, Fortran order and shape."""
    try:
        fields = ast.literal_eval(raw.decode("latin-1").strip())
        dtype, shape = np.dtype(fields["descr"]), tuple(int(n) for n in fields["shape"])
        fortran = bool(fields["fortran_order"])
    except (SyntaxError, ValueError, LookupError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        # Python's parser reports deep nesting as RecursionError or MemoryError.
        raise NpyFormatError(f"unreadable header ({error})") from error
    if dtype.hasobject:
        raise NpyFormatError("holds Python objects, which are never loaded")
    if dtype.kind not in _NUMBERS:
        raise NpyFormatError(f"dtype {dtype}, expected numbers")
    if any(size < 0 for size in shape):
        raise NpyFormatError(f"impossible shape {list(shape)}")
    return dtype, fortran, shape
