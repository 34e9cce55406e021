"""The samples of step k: a pure function of (dataset size, seed, global batch size, k), which I1 depends on.

Positions form one endless stream: position p is in epoch p div N, at slot p mod N of a permutation keyed by
(seed, epoch). Step k has the positions k·G … (k+1)·G - 1, so a global batch may cross the edge of an epoch. Only the
last global batch of a run may be short; no sample is dropped or repeated.

The permutation is a stable argsort of a keyed 64-bit hash, specified in integer arithmetic, because neither
`torch.randperm` nor numpy's `permutation` promises the same order in other versions.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

ORDER_VERSION = 1
"""Stored in every checkpoint. Another algorithm needs another version, and cannot continue an older run."""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, the increment of splitmix64 (Steele et al., OOPSLA 2014)
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
        key = mix64((key + _GOLDEN + part) & _MASK)
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
    key = np.uint64(mix64(mix64(seed + _GOLDEN) + (epoch + 1) * _GOLDEN))
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2^64
        # `mix64` on arrays: splitmix64 started at the key, one output per sample.
        value = key + np.arange(1, num_samples + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(_MIX_1)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(_MIX_2)
        value ^= value >> np.uint64(31)
    return np.argsort(value, kind="stable")


@lru_cache(maxsize=4)
def _cached_permutation(seed: int, epoch: int, num_samples: int) -> npt.NDArray[np.int64]:
    # A step reads one epoch, or two at an edge. Computing 200,000 slots takes 15 ms, so a few permutations are kept.
    order = permutation(seed, epoch, num_samples)
    order.flags.writeable = False  # all callers share it
    return order


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The stream of samples of a run."""

    num_samples: int
    seed: int
    global_batch_samples: int
    total_samples: int = field(default=0)
    """Length of the stream (epochs x num_samples), so that the last step may be short; 0 = endless."""

    def samples_of(self, step: int) -> npt.NDArray[np.int64]:
        """Dataset indices of one step, [global_batch_samples] or fewer at the end of the stream."""
        first = step * self.global_batch_samples
        stop = first + self.global_batch_samples
        if self.total_samples:
            stop = min(stop, self.total_samples)
        pieces = []
        while first < stop:
            epoch, slot = divmod(first, self.num_samples)
            taken = min(stop - first, self.num_samples - slot)
            pieces.append(_cached_permutation(self.seed, epoch, self.num_samples)[slot : slot + taken])
            first += taken
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    @property
    def total_steps(self) -> int:
        """Number of steps until the stream ends, with the short last one; 0 when it is endless."""
        return -(-self.total_samples // self.global_batch_samples)  # rounded up

    def epoch_of(self, step: int) -> tuple[int, int]:
        """The start of a step: (epoch, samples of that epoch that earlier steps have used)."""
        return divmod(step * self.global_batch_samples, self.num_samples)
