"""Numbers that every machine computes alike, as weights and inputs of golden values: a hash of place and name's number.

The same function made the golden files, outside of the repository, on the published classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


def uniform(number: int, shape: Sequence[int]) -> Values:
    """Numbers in [-1, 1): splitmix64 of (number, place)."""
    count = int(np.prod(shape, dtype=np.int64))
    with np.errstate(over="ignore"):
        state = np.arange(count, dtype=np.uint64) + (np.uint64(number) << np.uint64(32))
        state = (state + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)).astype(np.float64).reshape(tuple(shape)) * 2.0**-52 - 1.0


def weights(shapes: dict[str, Sequence[int]]) -> dict[str, Values]:
    """Weights for tensors of these shapes; the number of a tensor is its place among the sorted names."""
    return {name: _weight(name, number, shapes[name]) for number, name in enumerate(sorted(shapes), start=1)}


def _weight(name: str, number: int, shape: Sequence[int]) -> Values:
    values = uniform(number, shape)
    if name.endswith("running_var"):
        return 1.0 + 0.5 * np.abs(values)
    # Norms and scales are near 1; a matrix keeps the size of what it is applied to.
    if name.endswith(("gamma", "weight_g")) or (name.endswith("weight") and len(shape) == 1):
        return 1.0 + 0.1 * values
    if len(shape) < 2:
        return 0.1 * values
    return values * float(np.sqrt(3.0 / np.prod(shape[1:])))


def signal(number: int, samples: int, rate: int = 16_000) -> Values:
    """A sum of tones with a little noise, full scale 1."""
    time = np.arange(samples) / rate
    tones: Any = sum(np.sin(2 * np.pi * hz * time + number) / hz for hz in (110.0, 220.0, 475.0, 1310.0, 3170.0))
    return np.asarray(40.0 * tones + 0.01 * uniform(number, (samples,)))
