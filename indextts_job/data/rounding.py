"""A dataset with its vectors rounded to bfloat16, for shards of half the size."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from indextts_job.data.dataset import (
    DIGEST_BYTES,
    Arrays,
    Dataset,
    Owner,
    Part,
    Source,
    Use,
    Values,
    content_digest,
)
from indextts_job.data.texts import Bytes, distinct
from indextts_job.model.batch import Floats

READERS = 32
"""Number of arrays read at a time, to hide the latency of remote sources."""


@dataclass(frozen=True, slots=True)
class _Rounded:
    """A source with its vectors rounded to bfloat16."""

    source: Source
    rounded: Mapping[str, Bytes]
    """[samples, DIGEST_BYTES] the new digests, by use."""

    def origin(self, index: int) -> str:
        return self.source.origin(index)

    def digests(self, use: Use, start: int, stop: int) -> Bytes:
        return self.rounded[use][start:stop] if use in self.rounded else self.source.digests(use, start, stop)

    def largest(self, use: Use) -> int:
        return self.source.largest(use)

    def read(self, indices: Sequence[int], owner: Owner) -> Sequence[Arrays]:
        return [
            (text, codes, _to_bfloat16(condition), _to_bfloat16(emotion))
            for text, codes, condition, emotion in self.source.read(indices, owner)
        ]

    def read_one(self, use: Use, index: int, owner: Owner) -> Values:
        values = self.source.read_one(use, index, owner)
        return _to_bfloat16(values) if use in self.rounded else values


def rounded(dataset: Dataset) -> Dataset:
    """The dataset with its vectors rounded to bfloat16. All of them are read once, for their new digests."""
    return Dataset([_rounded_part(part) for part in dataset.parts], dataset.skipped, dataset.notes)


def _rounded_part(part: Part) -> Part:
    uses: tuple[Use, ...] = ("condition", "emotion")
    return replace(part, source=_Rounded(part.source, {use: _rounded_digests(part, use) for use in uses}))


def _rounded_digests(part: Part, use: Use) -> Bytes:
    first, rows = distinct(part.source.digests(use, 0, len(part)))

    def digest(index: int) -> bytes:
        return content_digest(_to_bfloat16(part.source.read_one(use, index, lambda _index: "sharding")))

    with ThreadPoolExecutor(max_workers=READERS) as pool:
        joined = b"".join(pool.map(digest, first.tolist()))
    return np.frombuffer(joined, np.uint8).reshape(-1, DIGEST_BYTES)[rows]


def _to_bfloat16(values: Floats) -> Floats:
    """The values rounded to the nearest bfloat16, ties to even, as float32."""
    bits = values.view(np.uint32)
    # Half of a unit in the last place, less one bit unless that place is odd. The vectors are finite: NaN is refused.
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)
