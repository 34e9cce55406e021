"""Starts the downloads of a bare node before torch is imported, which takes seconds itself."""

from indextts_job.attempt.copies import copies_of_inputs
from indextts_job.background import begin
from indextts_job.checkpoint.manifest import MANIFESTS
from indextts_job.config import RunConfig
from indextts_job.data.manifest import is_manifest, parse_source
from indextts_job.data.shard_index import INDEX
from indextts_job.errors import IndexTTSJobError
from indextts_job.storage import files


def begin_downloads(config: RunConfig) -> None:
    """Start reading remote inputs in the background; `read_inputs` takes the results."""
    files.configure_object_stores(config.storage)
    files.keep_copies_of_inputs(copies_of_inputs(config))
    for url in (config.inputs.model_config, config.inputs.tokenizer):
        if not files.is_local(url):
            files.read_ahead(url)
    # In a thread, because its requests take a round trip each.
    begin(lambda: _begin_large(config), "read ahead")


def _begin_large(config: RunConfig) -> None:
    """Start reading the inputs that need a request first: the base checkpoint and the indexes of shards."""
    try:
        base = config.inputs.base_checkpoint
        fresh = config.resume.source in ("auto", "own", "none")
        # A run with a checkpoint does not read the base, which is gigabytes.
        if fresh and not files.is_local(base) and not files.sizes(f"{config.run}/{MANIFESTS}"):
            files.copy_ahead(base)
        for argument in (*config.data.train_manifests, *config.data.validation_manifests):
            _begin_index(parse_source(argument, files.exists).url)
    except IndexTTSJobError:
        return  # it fails again where the file is needed, with a message


def _begin_index(url: str) -> None:
    """Start reading the index of a remote sharded dataset; manifests are read by the check of the data."""
    if not files.is_local(url) and not is_manifest(url):
        files.read_ahead(url if url.endswith(INDEX) else f"{url.rstrip('/')}/{INDEX}")
