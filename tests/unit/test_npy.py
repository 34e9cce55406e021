"""Array files: what numpy writes is read; everything else is refused with its reason."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from indextts_job.data.npy import NpyFormatError, parse_npy


def written(array: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(array), allow_pickle=True)
    return stream.getvalue()


@given(
    arrays.arrays(
        st.sampled_from([np.int16, np.int32, np.int64, np.float16, np.float32]), arrays.array_shapes(max_dims=3)
    )
)
def test_what_numpy_writes_is_read(array: np.ndarray) -> None:
    read = parse_npy(written(array))
    assert read.dtype == array.dtype
    assert np.array_equal(read, array, equal_nan=True)
    assert np.array_equal(parse_npy(written(np.asfortranarray(array))), array, equal_nan=True)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"PK\x03\x04 and so on", "not a .npy file"),
        (written(np.arange(9))[:-1], "truncated"),
        (written(np.arange(9)) + b"x", "trailing bytes"),
        (written(np.array([{}], dtype=object)), "Python objects"),
        (written(np.arange(9)).replace(b"descr", b"d\x00scr"), "unreadable header"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "unreadable header"),
    ],
)
def test_a_damaged_file_is_refused_with_its_reason(content: bytes, reason: str) -> None:
    with pytest.raises(NpyFormatError, match=reason):
        parse_npy(content)


@given(st.binary(max_size=300))
def test_no_bytes_make_it_fail_otherwise(content: bytes) -> None:
    for tail in (content, b"\x93NUMPY\x01\x00" + content, b"\x93NUMPY\x02\x00" + content):
        try:
            parse_npy(tail)
        except NpyFormatError:
            continue
