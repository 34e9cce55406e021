"""A run, or one of its checkpoints, as the base of another run: what its export would hold, without writing one."""

from dataclasses import replace

from indextts_job.checkpoint import retention
from indextts_job.checkpoint.manifest import MANIFESTS, parse_file_name
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.errors import ConfigError
from indextts_job.model.base_checkpoint import BaseCheckpoint, as_base, load_base_checkpoint
from indextts_job.model.config import GPTConfig
from indextts_job.model.vocabulary import NEW_ROWS_SUFFIX, join_rows
from indextts_job.redaction import redacted
from indextts_job.storage import files
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.urls import file_path

_WEIGHTS, _BASE = "model/", "base/"
"""Prefixes of a checkpoint's tensors, see `docs/checkpoint-format.md`."""


def load_base(url: str, config: GPTConfig) -> BaseCheckpoint:
    """The base checkpoint that a configuration names.

    Args:
        url: `gpt.pth`, an export, a run (its newest checkpoint), or a checkpoint's `.json`.
        config: The model whose keys and shapes are expected.

    Raises:
        ConfigError: It is not there.
        DataError: It does not fit the model, or cannot be read.
    """
    if url.endswith(".json"):
        folder, _, file = url.rpartition("/")
        run, named = folder.rpartition("/")[0] or ".", parse_file_name(file)
        if named is None or not files.exists(url):
            raise ConfigError(
                f"base checkpoint not found: {redacted(url)} is no checkpoint of a run. "
                f"`indextts-job checkpoints list {redacted(run)}` shows what there is."
            )
        return _of_checkpoint(CheckpointStore(open_storage(run)), named, redacted(url), config)
    if _may_be_run(url) and files.sizes(f"{url.rstrip('/')}/{MANIFESTS}"):
        store = CheckpointStore(open_storage(url.rstrip("/")))
        if newest := store.newest():
            return _of_checkpoint(store, newest.name, redacted(url), config)
    return load_base_checkpoint(url, config)


def _may_be_run(url: str) -> bool:
    if files.is_local(url):
        return files.local_path(url).is_dir()
    return not file_path(url).endswith((".pth", ".pt"))


def _of_checkpoint(
    store: CheckpointStore, name: retention.CheckpointName, shown: str, config: GPTConfig
) -> BaseCheckpoint:
    manifest = store.manifest(name)
    tensors = store.load(manifest, (_WEIGHTS, _BASE))
    full = {key.removeprefix(_BASE): value for key, value in tensors.items() if key.startswith(_BASE)}
    for key, value in tensors.items():
        if not key.startswith(_WEIGHTS):
            continue
        parameter = key.removeprefix(_WEIGHTS)
        table = parameter.removesuffix(NEW_ROWS_SUFFIX)
        joined = parameter != table and table in full
        full[table] = join_rows(full[table], value.to(full[table].dtype)) if joined else value
    base = as_base(full, config, shown)
    return replace(base, frozen_pieces=manifest.values.vocabulary.base_pieces)
