"""The code loss of each source of a mixture in a step. Only for people: nothing of the update depends on it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indextts_job.checkpoint.history import SourceSums
from indextts_job.model.batch import Integers, PackedBatch
from indextts_job.training.distributed import ProcessGroup


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of a run's samples."""

    names: tuple[str, ...]
    number_of: Callable[[Integers], Integers]
    """The sources of samples, as places among `names`, by their indices in the dataset."""


def source_sums(
    sources: Sources, batches: Sequence[PackedBatch], losses: npt.NDArray[np.float64], group: ProcessGroup
) -> tuple[SourceSums, ...]:
    """Sums over the code targets of a step, of all ranks. A collective call.

    Args:
        sources: The sources of the run.
        batches: This rank's micro-batches.
        losses: [code targets of all micro-batches] cross entropy in nats.
        group: All ranks.
    """
    samples = np.concatenate([batch.sample_indices for batch in batches])
    targets = np.concatenate([batch.code_sizes for batch in batches])
    # Each sample has a code target at least, its stop code, so no sum is of an empty piece.
    sums = np.add.reduceat(losses, np.cumsum(targets) - targets) if len(samples) else np.empty(0)
    numbers, count = sources.number_of(samples), len(sources.names)
    own = [*np.bincount(numbers, sums, count), *np.bincount(numbers, targets, count)]
    found = group.all_reduce_sum([float(value) for value in own])
    return tuple(
        SourceSums(source=name, mel=mel, targets=int(counted))
        for name, mel, counted in zip(sources.names, found[:count], found[count:], strict=True)
        if counted
    )
