"""The samples of a checked manifest, whose arrays are read from their `.npy` files when they are needed."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from indextts_job.data.archives import Reader
from indextts_job.data.array_files import read_array
from indextts_job.data.checking import CheckedManifest
from indextts_job.data.dataset import USES, Arrays, Limits, Owner, Part, Use, language_rows, verified
from indextts_job.data.manifest_source import ManifestSource
from indextts_job.data.texts import Bytes
from indextts_job.storage import files

READERS = 32
"""Number of samples read at a time from remote storage, to hide its latency."""


def file_part(checked: CheckedManifest, manifest: ManifestSource, limits: Limits) -> Part:
    """The samples of a checked manifest.

    Args:
        checked: The outcome of the check.
        manifest: Its URL, for messages.
        limits: The sizes that it was checked with.
    """
    return Part(
        ids=checked.ids,
        languages=checked.languages,
        language=checked.language,
        language_rows=language_rows(checked.languages, limits.model),
        text_lengths=checked.lengths[checked.files[:, 0]],
        code_lengths=checked.lengths[checked.files[:, 1]],
        source=FileSource(checked, manifest, limits),
    )


@dataclass(slots=True)
class FileSource:
    """See `dataset.Source`."""

    checked: CheckedManifest
    manifest: ManifestSource
    limits: Limits
    _pool: ThreadPoolExecutor | None = field(default=None, init=False)

    def origin(self, index: int) -> str:
        """See `dataset.Source`."""
        return f"{self.manifest.shown}:{self.checked.line[index]}"

    def digests(self, use: Use, start: int, stop: int) -> Bytes:
        """See `dataset.Source`."""
        return self.checked.digests[self.checked.files[start:stop, USES.index(use)]]

    def largest(self, use: Use) -> int:
        """See `dataset.Source`."""
        return (self.limits.text_pieces if use == "text" else self.limits.model.number_codes) - 1

    def read(self, indices: Sequence[int], owner: Owner) -> Sequence[Arrays]:
        """See `dataset.Source`."""
        read = partial(self._sample, owner=owner)
        # Threads hide the latency of remote storage; a local disk has little. The files of a manifest in a bucket are
        # in that bucket.
        if files.is_local(self.manifest.url):
            return [read(index) for index in indices]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=READERS, thread_name_prefix="samples")
        return list(self._pool.map(read, indices))

    def _sample(self, index: int, owner: Owner) -> Arrays:
        reader = Reader()  # an archive with several of the arrays is read once
        text, codes, condition, emotion = (self._read_one(use, index, owner, reader) for use in USES)
        return text, codes, condition, emotion

    def read_one(self, use: Use, index: int, owner: Owner) -> Any:  # noqa: ANN401  # ids or a vector
        """See `dataset.Source`."""
        return self._read_one(use, index, owner, Reader())

    def _read_one(self, use: Use, index: int, owner: Owner, reader: Reader) -> Any:  # noqa: ANN401
        row = self.checked.files[index, USES.index(use)]
        path, digest = self.checked.paths[row], self.checked.digests[row].tobytes()

        def load(fresh: bool) -> Any:  # noqa: ANN401, FBT001
            return read_array(path, use, self.limits, digest, Reader() if fresh else reader)

        return verified(load, path, owner(index))
