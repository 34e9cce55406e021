"""Load a dataset from the manifests and sharded datasets that a configuration names, in the given order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from indextts_job.data.cache import shard_reader
from indextts_job.data.checking import check_manifest
from indextts_job.data.dataset import Dataset, Limits, Part, SkippedSample
from indextts_job.data.file_source import file_part
from indextts_job.data.manifest_source import ManifestSource, parse_source
from indextts_job.data.plausibility import uneven_sources
from indextts_job.data.remembered import Memory, key_of, recalled, remember
from indextts_job.data.shards import is_sharded, open_shards
from indextts_job.errors import DataError
from indextts_job.redaction import redacted
from indextts_job.storage import files
from indextts_job.storage.manifest_text import manifest_lines
from indextts_job.storage.node_cache import shard_folder


def load_dataset(  # noqa: PLR0913  # all by name
    arguments: Sequence[str],
    limits: Limits,
    *,
    skip_bad_samples: bool,
    cache_folder: str = "",
    cache_free_ratio: float = 0.0,
    memory: Memory | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Dataset:
    """Read and check everything that manifest arguments name.

    Args:
        arguments: Manifests or sharded datasets, as the user gave them.
        limits: The sizes that model and tokenizer allow.
        skip_bad_samples: Leave bad samples out instead of raising.
        cache_folder: Folder for copies of remote shards; empty = the default.
        cache_free_ratio: Share of its disk that the copies leave free.
        memory: Where outcomes of checks are kept, so that no array is read for the next one; None = every array is
            checked.
        progress: Called with (arrays checked, arrays in all).

    Raises:
        DataError: A manifest, a shard or a sample is bad; the message names all bad samples of a manifest.
    """
    parts: list[Part] = []
    skipped: list[SkippedSample] = []
    notes: list[str] = []
    copies = shard_folder(cache_folder)
    reader = partial(shard_reader, cache_folder=copies, free_ratio=cache_free_ratio)
    check = _Check(limits, skip_bad_samples, memory, progress)
    for argument in arguments:
        source = parse_source(argument, files.exists)
        part, bad, said = open_shards(source.url, limits, reader) if is_sharded(source.url) else check(source)
        parts.append(part)
        skipped += bad
        notes += said
    if not parts:
        raise DataError(f"no samples in {', '.join(map(redacted, arguments))}.")
    if len(parts) > 1:
        notes += uneven_sources([_rate(*named) for named in zip(map(redacted, arguments), parts, strict=True)])
    return Dataset(parts, skipped, notes)


def _rate(name: str, part: Part) -> tuple[str, str, float]:
    """Name, most frequent language, and median of codes per text id of a source."""
    usual = int(np.bincount(part.language).argmax())
    of_usual = part.language == usual
    return name, part.languages[usual], float(np.median(part.code_lengths[of_usual] / part.text_lengths[of_usual]))


@dataclass(frozen=True, slots=True)
class _Check:
    """Checks manifests, or recalls an earlier check."""

    limits: Limits
    skip_bad_samples: bool
    memory: Memory | None
    progress: Callable[[int, int], None]

    def __call__(self, source: ManifestSource) -> tuple[Part, Sequence[SkippedSample], Sequence[str]]:
        """The samples of a manifest, those left out, and what is suspicious about the whole."""
        content = files.read_manifest(source.url)
        key = key_of(content, source, self.limits, skip_bad_samples=self.skip_bad_samples)
        checked = recalled(self.memory, key, source) if self.memory else None
        if checked is None:
            lines = manifest_lines(content, source.shown)
            checked = check_manifest(lines, source, self.limits, self.progress, skip_bad_samples=self.skip_bad_samples)
            if self.memory:
                remember(self.memory, key, checked, source)
        return file_part(checked, source, self.limits), checked.skipped, checked.notes
