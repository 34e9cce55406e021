"""Arrays of `.npy` files from their bytes, strictly: no pickle, nothing missing, nothing left over."""

import ast
import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

_MAGIC = b"\x93NUMPY"


class NpyFormatError(ValueError):
    """The bytes are not a complete array file; the message says what is wrong with them."""


def parse_npy(content: bytes) -> npt.NDArray[np.generic]:
    """The array in a `.npy` file of format 1 to 3 (numpy's NEP 1).

    Written out because `numpy.load` evaluates the header anew for each of some 400,000 files; equal headers are
    parsed once here.

    Args:
        content: The whole file.

    Returns:
        A read-only array over the same memory.

    Raises:
        NpyFormatError: Not an array, truncated, with trailing bytes, or of Python objects.
    """
    if not content.startswith(_MAGIC) or len(content) < 10:
        raise NpyFormatError("not a .npy file" if content else "empty file")
    wide = content[6] >= 2
    start = 12 if wide else 10
    header_size = int.from_bytes(content[8:start], "little")
    dtype, fortran, shape = _header(content[start : start + header_size])
    expected = start + header_size + dtype.itemsize * math.prod(shape)
    if len(content) != expected:
        kind = "truncated" if len(content) < expected else "trailing bytes"
        raise NpyFormatError(f"{kind}: {len(content)} bytes, its header says {expected}")
    array = np.frombuffer(content, dtype=dtype, offset=start + header_size)
    return array.reshape(shape, order="F" if fortran else "C")


@lru_cache(maxsize=4096)
def _header(raw: bytes) -> tuple[np.dtype[np.generic], bool, tuple[int, ...]]:
    try:
        fields = ast.literal_eval(raw.decode("latin-1").strip())
        dtype, shape = np.dtype(fields["descr"]), tuple(int(n) for n in fields["shape"])
        fortran = bool(fields["fortran_order"])
    except (SyntaxError, ValueError, KeyError, TypeError) as error:
        raise NpyFormatError(f"unreadable header ({error})") from error
    if dtype.hasobject:
        raise NpyFormatError("holds Python objects, which are never loaded")
    return dtype, fortran, shape
