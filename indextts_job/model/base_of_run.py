"""The base that a configuration names: a `gpt.pth` with what its config.yaml says, or a run, or one of its checkpoints.

Of a run or a checkpoint it is the tensors of its export, without writing one.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from indextts_job.checkpoint import retention
from indextts_job.checkpoint.manifest import MANIFESTS, parse_file_name
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.checkpoint.tensor_names import BASE, WEIGHTS, below
from indextts_job.errors import ConfigError
from indextts_job.model.base_checkpoint import BaseCheckpoint, as_base, described_by_export, load_base_checkpoint
from indextts_job.model.config import GPTConfig
from indextts_job.model.export import CONFIG_FILE
from indextts_job.model.merge import published
from indextts_job.model.versions import OUR_SECTION
from indextts_job.model.vocabulary import Vocabulary
from indextts_job.redaction import redacted
from indextts_job.storage import files
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.urls import file_path


def load_base(url: str, config: GPTConfig, document: Mapping[str, Any], source: str) -> BaseCheckpoint:
    """The base checkpoint that a configuration names.

    Args:
        url: `gpt.pth` or an export's, a run (its newest checkpoint), or a checkpoint's `.json`.
        config: The model whose keys and shapes are expected.
        document: The model's config.yaml that was given. An export's says which rows runs have trained.
        source: Its path or URL.

    Raises:
        ConfigError: There is nothing at this URL, or the config.yaml says what cannot be.
        DataError: The file or checkpoint does not fit the model, or it cannot be read.
    """
    if url.endswith(".json"):
        return _named_checkpoint(url, config)
    if _may_be_run(url) and files.sizes(f"{url.rstrip('/')}/{MANIFESTS}"):
        store = CheckpointStore(open_storage(url.rstrip("/")))
        if newest := store.newest():
            return _base_of(store, newest.name, redacted(url), config)
    return _described(load_base_checkpoint(url, config), url, document, source)


def _described(base: BaseCheckpoint, url: str, document: Mapping[str, Any], source: str) -> BaseCheckpoint:
    """What an export's config.yaml says about its rows: the one that was given, else the one beside the weights."""
    if OUR_SECTION not in document:
        # The release's file with an export's weights would lose what runs have trained.
        folder = url.rpartition("/")[0]
        beside = f"{folder}/{CONFIG_FILE}" if folder else CONFIG_FILE
        if beside != source and files.exists(beside):
            found = files.read_yaml(beside, "model configuration", "inputs.base_checkpoint")
            if isinstance(found, Mapping):
                return described_by_export(base, found, beside)
    return described_by_export(base, document, source)


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
    full = published(below(WEIGHTS, tensors), below(BASE, tensors), vocabulary, manifest.values.adapter)
    base = as_base(full, config, shown)
    return replace(
        base,
        frozen_pieces=vocabulary.base_pieces,
        new_pieces_at=vocabulary.inserted_at,
        languages=manifest.values.trained_languages,
    )
