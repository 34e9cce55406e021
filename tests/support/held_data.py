"""Datasets in memory, and parts of datasets, for tests."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from indextts_job.data.dataset import USES, Arrays, Dataset, Owner, Part, Source, Use, content_digest
from indextts_job.data.texts import Bytes, Texts


@dataclass(frozen=True, slots=True)
class HeldSource:
    """Arrays in memory."""

    arrays: Sequence[Arrays]

    def origin(self, index: int) -> str:
        return f"sample {index} in memory"

    def digests(self, use: Use, start: int, stop: int) -> Bytes:
        column = [arrays[USES.index(use)] for arrays in self.arrays[start:stop]]
        wide = [np.asarray(array, np.int32 if array.dtype.kind in "iu" else np.float32) for array in column]
        return np.frombuffer(b"".join(map(content_digest, wide)), np.uint8).reshape(-1, 16)

    def largest(self, use: Use) -> int:
        return max(int(arrays[USES.index(use)].max()) for arrays in self.arrays)

    def read(self, indices: Sequence[int], owner: Owner) -> Sequence[Arrays]:
        return [self.arrays[index] for index in indices]

    def read_one(self, use: Use, index: int, owner: Owner) -> Any:
        return self.arrays[index][USES.index(use)]


def held(arrays: Sequence[Arrays], names: Sequence[str] = ()) -> Dataset:
    """A dataset of these arrays."""
    part = Part(
        ids=Texts.of(names or [f"sample-{number}" for number in range(len(arrays))]),
        languages=("am",),
        language=np.zeros(len(arrays), np.int32),
        text_lengths=np.array([len(text) for text, *_ in arrays], np.int32),
        code_lengths=np.array([len(codes) for _, codes, *_ in arrays], np.int32),
        source=HeldSource(arrays),
    )
    return Dataset([part])


@dataclass(frozen=True, slots=True)
class _Chosen:
    source: Source
    places: np.ndarray[Any, np.dtype[np.int64]]

    def origin(self, index: int) -> str:
        return self.source.origin(int(self.places[index]))

    def digests(self, use: Use, start: int, stop: int) -> Bytes:
        chosen = self.places[start:stop]
        return self.source.digests(use, 0, int(self.places.max()) + 1)[chosen]

    def largest(self, use: Use) -> int:
        return self.source.largest(use)

    def read(self, indices: Sequence[int], owner: Owner) -> Sequence[Arrays]:
        return self.source.read(self.places[list(indices)].tolist(), owner)

    def read_one(self, use: Use, index: int, owner: Owner) -> Any:
        return self.source.read_one(use, int(self.places[index]), owner)


def chosen(dataset: Dataset, indices: Sequence[int], suffix: str = "") -> Dataset:
    """Some samples of a dataset of one part, with something behind their ids."""
    (part,) = dataset.parts
    places = np.asarray(indices, np.int64)
    return Dataset(
        [
            replace(
                part,
                ids=Texts.of([part.ids[index] + suffix for index in indices]),
                language=part.language[places],
                text_lengths=part.text_lengths[places],
                code_lengths=part.code_lengths[places],
                source=_Chosen(part.source, places),
            )
        ]
    )
