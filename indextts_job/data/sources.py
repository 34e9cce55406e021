"""Load a dataset from the manifests and sharded datasets that a configuration names, in the given order."""

from collections.abc import Callable, Sequence
from functools import partial

from indextts_job.data.cache import default_folder, shard_reader
from indextts_job.data.checking import check_records
from indextts_job.data.dataset import Dataset, Entry, Limits, SkippedSample
from indextts_job.data.manifest import parse_records, parse_source
from indextts_job.data.shards import is_sharded, open_shards
from indextts_job.errors import DataError
from indextts_job.redaction import redacted
from indextts_job.storage import files


def load_dataset(
    arguments: Sequence[str],
    limits: Limits,
    *,
    skip_bad_samples: bool,
    cache_folder: str = "",
    cache_free_ratio: float = 0.0,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Dataset:
    """Read and check everything that manifest arguments name.

    Args:
        arguments: Manifests or sharded datasets, as the user gave them.
        limits: The sizes that model and tokenizer allow.
        skip_bad_samples: Leave bad samples out instead of raising.
        cache_folder: Folder for copies of remote shards; empty = the default.
        cache_free_ratio: Share of its disk that the copies leave free.
        progress: Called with (arrays checked, arrays in all).

    Raises:
        DataError: A manifest, a shard or a sample is bad; the message names all bad samples of a manifest.
    """
    entries: list[Entry] = []
    skipped: list[SkippedSample] = []
    copies = files.local_path(cache_folder) if cache_folder else default_folder()
    reader = partial(shard_reader, cache_folder=copies, free_ratio=cache_free_ratio)
    for argument in arguments:
        source = parse_source(argument, files.exists)
        if is_sharded(source.url):
            good, bad = open_shards(source.url, limits, reader)
        else:
            records = parse_records(files.lines_of(files.read_manifest_text(source.url)), source)
            good, bad = check_records(records, limits, progress, skip_bad_samples=skip_bad_samples)
        entries += good
        skipped += bad
    if not entries:
        raise DataError(f"no samples in {', '.join(map(redacted, arguments))}.")
    return Dataset(entries, skipped)
