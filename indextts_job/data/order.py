"""The samples of step k of one source: a pure function of (its size, seed, global batch size, k), which I1 depends on.

Positions form one endless stream: position p is in epoch p div N, at slot p mod N of a permutation keyed by
(seed, epoch). Step k has the positions k·G … (k+1)·G - 1, so a global batch may cross the edge of an epoch. Only the
last global batch of a run may be short; no sample is dropped or repeated.

The permutation is a stable argsort of a keyed 64-bit hash, specified in integer arithmetic, because neither
`torch.randperm` nor numpy's `permutation` promises the same order in other versions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

_MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, the increment of splitmix64 (Steele et al., OOPSLA 2014)
# Multipliers of splitmix64's finalizer: variant 13 of Stafford, "Better Bit Mixing", 2011.
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def mix64(value: int) -> int:
    """The finalizer of splitmix64: a bijection of 64-bit integers that flips about half of the bits."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several integers in their order, for example (seed, step, micro-batch, rank)."""
    key = 0
    for part in parts:
        key = mix64((key + GOLDEN + part) & _MASK)
    return key >> 1


def permutation(seed: int, epoch: int, num_samples: int) -> npt.NDArray[np.int64]:
    """The order of the samples in one epoch.

    Args:
        seed: The run's seed.
        epoch: The epoch, from 0.
        num_samples: Number of samples in the dataset.

    Returns:
        Dataset indices [num_samples], each exactly once.
    """
    key = np.uint64(mix64(mix64(seed + GOLDEN) + (epoch + 1) * GOLDEN))
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2^64
        # `mix64` on arrays: splitmix64 started at the key, one output per sample.
        value = key + np.arange(1, num_samples + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(_MIX_1)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(_MIX_2)
        value ^= value >> np.uint64(31)
    return np.argsort(value, kind="stable")


@lru_cache(maxsize=64)
def _epochs(seed: int, num_samples: int) -> Callable[[int], npt.NDArray[np.int64]]:
    """The permutations of one stream by epoch; the last ones are kept.

    A step reads one epoch of a stream, or two at an edge. Computing 200,000 slots takes 15 ms. Each stream has a memory
    of its own, so that the sources of a mixture do not displace each other.
    """

    @lru_cache(maxsize=2)
    def epoch(number: int) -> npt.NDArray[np.int64]:
        order = permutation(seed, number, num_samples)
        order.flags.writeable = False  # all callers share it
        return order

    return epoch


def stream(seed: int, num_samples: int, first: int, stop: int) -> npt.NDArray[np.int64]:
    """Part of the endless stream of one source: its permutations, one after the other.

    Args:
        seed: The stream's seed.
        num_samples: Number of samples in the source.
        first: The first place, from 0.
        stop: The place behind the last.

    Returns:
        Indices in the source [stop - first]; empty where there is nothing between the places.
    """
    pieces = []
    while first < stop:
        epoch, slot = divmod(first, num_samples)
        taken = min(stop - first, num_samples - slot)
        pieces.append(_epochs(seed, num_samples)(epoch)[slot : slot + taken])
        first += taken
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)


class SampleOrder(Protocol):
    """The samples of every step of a run: of one source (`Order`), or of a mixture (`data/mixture.py`)."""

    version: ClassVar[int]
    """Stored in every checkpoint. Another algorithm needs another version, and cannot continue an older run."""

    @property
    def seed(self) -> int:
        """The run's seed."""

    @property
    def global_batch_samples(self) -> int:
        """Number of samples of a step."""

    @property
    def num_samples(self) -> int:
        """Number of samples of all sources together."""

    @property
    def epoch_samples(self) -> int:
        """Number of samples of the source whose epochs are counted."""

    @property
    def total_steps(self) -> int:
        """Number of steps until the stream ends, with the short last one; 0 when it is endless."""

    def samples_of(self, step: int) -> npt.NDArray[np.int64]:
        """Dataset indices of one step, [global_batch_samples] or fewer at the end of the stream."""

    def epoch_of(self, step: int) -> tuple[int, int]:
        """The start of a step: (epoch, samples of that epoch that earlier steps have used)."""

    def epochs_after(self, samples: int) -> float:
        """Epochs that the first samples of the stream make: 1.5 is the middle of the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The stream of samples of a run with one source."""

    version: ClassVar[int] = 1

    num_samples: int
    seed: int
    global_batch_samples: int
    total_samples: int = field(default=0)
    """Length of the stream (epochs x num_samples), so that the last step may be short; 0 = endless."""

    @property
    def epoch_samples(self) -> int:
        """See `SampleOrder`."""
        return self.num_samples

    def samples_of(self, step: int) -> npt.NDArray[np.int64]:
        """See `SampleOrder`."""
        first = step * self.global_batch_samples
        stop = first + self.global_batch_samples
        if self.total_samples:
            stop = min(stop, self.total_samples)
        return stream(self.seed, self.num_samples, first, stop)

    @property
    def total_steps(self) -> int:
        """See `SampleOrder`."""
        return -(-self.total_samples // self.global_batch_samples)  # rounded up

    def epoch_of(self, step: int) -> tuple[int, int]:
        """See `SampleOrder`."""
        return divmod(step * self.global_batch_samples, self.num_samples)

    def epochs_after(self, samples: int) -> float:
        """See `SampleOrder`."""
        return samples / self.num_samples
