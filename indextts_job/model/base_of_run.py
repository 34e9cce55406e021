"""A run, or one of its checkpoints, as the base of another run: the tensors of its export, without writing one."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from indextts_job.checkpoint import retention
from indextts_job.checkpoint.manifest import MANIFESTS, parse_file_name
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.checkpoint.tensor_names import BASE, WEIGHTS, below
from indextts_job.errors import ConfigError
from indextts_job.model.base_checkpoint import BaseCheckpoint, as_base, load_base_checkpoint
from indextts_job.model.config import GPTConfig
from indextts_job.model.vocabulary import NEW_ROWS_SUFFIX, Vocabulary, join_rows
from indextts_job.redaction import redacted
from indextts_job.storage import files
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.urls import file_path


def load_base(url: str, config: GPTConfig) -> BaseCheckpoint:
    """The base checkpoint that a configuration names.

    Args:
        url: `gpt.pth` or an export's, a run (its newest checkpoint), or a checkpoint's `.json`.
        config: The model whose keys and shapes are expected.

    Raises:
        ConfigError: There is nothing at this URL.
        DataError: The file or checkpoint does not fit the model, or it cannot be read.
    """
    if url.endswith(".json"):
        return _named_checkpoint(url, config)
    if _may_be_run(url) and files.sizes(f"{url.rstrip('/')}/{MANIFESTS}"):
        store = CheckpointStore(open_storage(url.rstrip("/")))
        if newest := store.newest():
            return _base_of(store, newest.name, redacted(url), config)
    return load_base_checkpoint(url, config)


def _named_checkpoint(url: str, config: GPTConfig) -> BaseCheckpoint:
    # RUN/checkpoints/NAME.json
    folder, _, file = url.rpartition("/")
    run, name = folder.rpartition("/")[0] or ".", parse_file_name(file)
    if name is None or not files.exists(url):
        raise ConfigError(
            f"base checkpoint not found: {redacted(url)} is no checkpoint of a run. "
            f"`indextts-job checkpoints list {redacted(run)}` shows what there is."
        )
    return _base_of(CheckpointStore(open_storage(run)), name, redacted(url), config)


def _may_be_run(url: str) -> bool:
    """Whether a URL may be the folder of a run; decided without a request where the name says enough."""
    if files.is_local(url):
        return files.local_path(url).is_dir()
    return not file_path(url).endswith((".pth", ".pt"))


def _base_of(store: CheckpointStore, name: retention.CheckpointName, shown: str, config: GPTConfig) -> BaseCheckpoint:
    manifest = store.manifest(name)
    tensors = store.load(manifest, (WEIGHTS, BASE))
    vocabulary = Vocabulary.recorded(manifest.values.vocabulary)
    base = as_base(_published(tensors, vocabulary.new_rows_at), config, shown)
    return replace(
        base,
        frozen_pieces=vocabulary.base_pieces,
        new_pieces_at=vocabulary.inserted_at,
        languages=manifest.values.trained_languages,
    )


def _published(tensors: Mapping[str, Tensor], new_rows_at: int) -> dict[str, Tensor]:
    """A checkpoint's tensors under their published names, text tables joined of frozen and new rows."""
    published = below(BASE, tensors)
    for key, value in below(WEIGHTS, tensors).items():
        table = key.removesuffix(NEW_ROWS_SUFFIX)
        is_new_rows = key != table and table in published
        if is_new_rows:
            published[table] = join_rows(published[table], value.to(published[table].dtype), new_rows_at)
        else:
            published[table] = value
    return published
