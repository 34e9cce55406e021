"""Check the files of a manifest in parallel, and keep a few numbers of each, never its values."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from indextts_job.data.archives import MEMBERS, Reader, archive_of
from indextts_job.data.array_files import BadArrayError, Ids, Progress, Vector, check_array
from indextts_job.data.dataset import DIGEST_BYTES, USES, Column, Limits
from indextts_job.data.texts import Bytes, Paths

AT_A_TIME = 4096
"""Number of files handed to the threads at a time: each that waits takes more memory than all that is kept of it."""


@dataclass(slots=True)
class SeenFiles:
    """The outcome of the check of every file."""

    digests: Bytes
    lengths: Column
    """Number of ids that the model reads; 0 for a vector."""
    stored: Column
    """Number of ids in the file."""
    first: Column
    """First id."""
    tails: Column
    """Equal ids at the end."""
    norms: npt.NDArray[np.float32]
    """Length of a vector."""
    faults: dict[int, str]

    @classmethod
    def of_files(cls, count: int) -> "SeenFiles":
        """Room for so many files."""
        lengths, stored, first, tails = (np.zeros(count, np.int32) for _ in range(4))
        digests, norms = np.zeros((count, DIGEST_BYTES), np.uint8), np.zeros(count, np.float32)
        return cls(digests, lengths, stored, first, tails, norms, {})

    def keep(self, row: int, array: Ids | Vector) -> None:
        """Note what was found in a good file."""
        self.digests[row] = np.frombuffer(array.digest, np.uint8)
        if isinstance(array, Vector):
            self.norms[row] = array.norm
            return
        self.lengths[row], self.stored[row] = len(array.values), array.stored
        self.first[row], self.tails[row] = array.values[0], array.tail


def check_files(paths: Paths, uses: npt.NDArray[np.int8], limits: Limits, progress: Progress) -> SeenFiles:
    """Read and check files in parallel.

    Args:
        paths: Their paths or URLs.
        uses: [files] the use of each, as its place in `USES`.
        limits: The demands of model and tokenizer.
        progress: Called after each.
    """

    def checked(rows: Sequence[int]) -> list[Ids | Vector | str]:
        reader = Reader()
        found: list[Ids | Vector | str] = []
        for row in rows:
            try:
                found.append(check_array(paths[row], USES[uses[row]], limits, reader))
            except BadArrayError as error:
                found.append(str(error))
        return found

    count = len(paths)
    seen = SeenFiles.of_files(count)
    done = 0
    # Reading and hashing release the interpreter lock; more threads than cores hide the latency of storage.
    with ThreadPoolExecutor(max_workers=4 * (os.cpu_count() or 1)) as pool:
        for groups in _batches(_by_container(paths)):
            for rows, results in zip(groups, pool.map(checked, groups), strict=True):
                for row, result in zip(rows, results, strict=True):
                    if isinstance(result, str):
                        seen.faults[row] = result
                    else:
                        seen.keep(row, result)
                    done += 1
                    progress(done, count)
    return seen


def _batches(groups: Iterator[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    while batch := list(islice(groups, AT_A_TIME)):
        yield batch


def _by_container(paths: Paths) -> Iterator[Sequence[int]]:
    """The places of all paths, those of one archive together, so that it is read once."""
    archives: dict[str, list[int]] = {}
    folders = [archive_of(f"{folder}{MEMBERS['text']}.npy") for folder in paths.folders]
    for row, folder in enumerate(paths.folder.tolist()):
        # The members of an archive are named as if it were their folder.
        if archive := folders[folder]:
            archives.setdefault(archive, []).append(row)
        else:
            yield (row,)
    yield from archives.values()
