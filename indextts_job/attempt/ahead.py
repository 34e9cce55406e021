"""What a start can begin before torch is imported: the downloads of a bare node."""

from indextts_job.background import begin
from indextts_job.checkpoint.manifest import MANIFESTS
from indextts_job.config import RunConfig
from indextts_job.data.manifest import is_manifest, parse_source
from indextts_job.data.shard_index import INDEX
from indextts_job.errors import IndexTTSJobError
from indextts_job.storage import files


def begin_downloads(config: RunConfig) -> None:
    """Begin to read remote inputs; `read_inputs` takes them when they are needed."""
    files.configure_object_stores(config.storage)
    for url in (config.inputs.model_config, config.inputs.tokenizer):
        if not files.is_local(url):
            files.read_ahead(url)
    begin(lambda: _begin_large(config), "read ahead")


def _begin_large(config: RunConfig) -> None:
    """What needs a look first; whatever fails here fails again, with its message, where it is needed."""
    try:
        base = config.inputs.base_checkpoint
        fresh = config.resume.source in ("auto", "own", "none")
        if fresh and not files.is_local(base) and not files.sizes(f"{config.run}/{MANIFESTS}"):
            files.read_ahead(base)
        for argument in (*config.data.train_manifests, *config.data.validation_manifests):
            url = parse_source(argument, files.exists).url
            if not files.is_local(url) and not is_manifest(url):
                files.read_ahead(url if url.endswith(INDEX) else f"{url.rstrip('/')}/{INDEX}")
    except IndexTTSJobError:
        return
