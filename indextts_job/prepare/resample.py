"""Resampling by a windowed sinc, in the form that inference uses: Hann window, 6 zero crossings, roll-off 0.99.

Formula: J. O. Smith, "Digital Audio Resampling", CCRMA; the parameters are the defaults of `torchaudio.transforms.
Resample`, which published inference calls.
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

ZERO_CROSSINGS, ROLL_OFF = 6, 0.99
HIGHEST_RATE = 768_000
"""A higher rate comes from a damaged header. The table below grows with it."""
_AT_A_TIME = 2**17
"""Samples made at a time: each gathers a window of its neighbours."""


def resampled(samples: npt.NDArray[np.floating], rate: int, wanted: int) -> npt.NDArray[np.float64]:
    """Samples at another rate.

    Args:
        samples: [samples].
        rate: Their rate in Hz.
        wanted: Rate of the result.

    Returns:
        [⌈samples · wanted / rate⌉].
    """
    values = np.asarray(samples, np.float64)
    if rate == wanted:
        return values
    common = math.gcd(rate, wanted)
    old, new = rate // common, wanted // common
    table, reach = _kernels(old, new)
    padded = np.pad(values, (reach, reach + old))
    count = -(-len(values) * new // old)
    made = np.empty(count)
    for start in range(0, count, _AT_A_TIME):
        places = np.arange(start, min(start + _AT_A_TIME, count))
        # Sample number i of the result lies at i · old / new; its window begins `reach` samples before that.
        windows = padded[(places * old // new)[:, None] + np.arange(2 * reach + 1)]
        made[start : start + len(places)] = np.einsum("ij,ij->i", windows, table[places % new])
    return made


@lru_cache(maxsize=8)
def _kernels(old: int, new: int) -> tuple[npt.NDArray[np.float64], int]:
    """The filter at every phase of the result, and how far it reaches.

    Args:
        old: Samples of the input in a period that both rates have in common.
        new: Samples of the result in it.

    Returns:
        [new, 2 · reach + 1], and the reach in samples of the input.
    """
    cutoff = min(old, new) * ROLL_OFF
    reach = math.ceil(ZERO_CROSSINGS * old / cutoff)
    # Distance of each neighbour from the place of the result, in zero crossings of the sinc.
    behind = (np.arange(new) * old % new) / new
    distance = (np.arange(-reach, reach + 1)[None, :] - behind[:, None]) * (cutoff / old)
    distance = np.clip(distance, -ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = np.cos(distance * (math.pi / ZERO_CROSSINGS / 2)) ** 2
    return np.sinc(distance) * window * (cutoff / old), reach
