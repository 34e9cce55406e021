"""Starts the downloads of a bare node before torch is imported, which takes seconds itself."""

import contextlib

from indextts_job.attempt.copies import copies_of_inputs, copies_of_run
from indextts_job.background import begin
from indextts_job.checkpoint.ahead import ObjectsAhead
from indextts_job.config import RunConfig
from indextts_job.data.manifest_source import is_manifest, parse_source
from indextts_job.data.named_sources import training_arguments
from indextts_job.data.shard_index import INDEX
from indextts_job.errors import IndexTTSJobError
from indextts_job.storage import files
from indextts_job.storage.remote_storage import open_storage
from indextts_job.waiting import Stopped, never, settled

HEAD_START_S = 3.0
"""Longest wait for the first answers of the storage. Usually they come within half a second."""


def begin_downloads(config: RunConfig, stopped: Stopped = never) -> ObjectsAhead:
    """Start reading remote inputs, and the run's newest checkpoint, in the background.

    Args:
        config: Names the run and its inputs.
        stopped: Ends the wait for the first answers.

    Returns:
        The objects of the checkpoint; `read_inputs` takes the other results.
    """
    files.configure_object_stores(config.storage)
    files.keep_copies_of_inputs(copies_of_inputs(config))
    for url in (config.inputs.model_config, config.inputs.tokenizer):
        if not files.is_local(url):
            files.read_ahead(url)
    ahead = ObjectsAhead()
    # In a thread, because its requests take a round trip each.
    begun = begin(lambda: _begin_large(config, ahead), "read ahead")
    # Transfers run outside of the interpreter, their first requests do not: beside the import of torch, which holds the
    # interpreter for a second, they would begin when it ends.
    settled(begun, HEAD_START_S, stopped)
    return ahead


def _begin_large(config: RunConfig, ahead: ObjectsAhead) -> None:
    """Start reading what needs a request first: checkpoint or base checkpoint, and the indexes of shards."""
    # What fails here fails again where it is needed, with a message.
    with contextlib.suppress(IndexTTSJobError):
        storage = open_storage(config.run, config.storage)
        resumes = config.resume.source in ("auto", "own", "none")
        if resumes and not ahead.begin(storage, copies_of_run(config)):
            # A run with a checkpoint does not read the base, which is gigabytes.
            base = config.inputs.base_checkpoint
            if not files.is_local(base):
                files.copy_ahead(base)
    with contextlib.suppress(IndexTTSJobError):
        for argument in (*training_arguments(config.data), *config.data.validation_manifests):
            _begin_index(parse_source(argument, files.exists).url)


def _begin_index(url: str) -> None:
    """Start reading the index of a remote sharded dataset; manifests are read by the check of the data."""
    if not files.is_local(url) and not is_manifest(url):
        files.read_ahead(url if url.endswith(INDEX) else f"{url.rstrip('/')}/{INDEX}")
