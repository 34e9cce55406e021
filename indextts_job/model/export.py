"""An export: the `gpt.pth`, `config.yaml` and tokenizer that published inference loads."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from indextts_job.checkpoint.values import CheckpointValues
from indextts_job.errors import ConfigError, UnavailableError
from indextts_job.model.base_checkpoint import export_config, export_state_dict
from indextts_job.model.config import gpt_config
from indextts_job.model.vocabulary import Vocabulary

WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE = "gpt.pth", "config.yaml", "bpe.model"


def write_export(
    folder: Path,
    trained: Mapping[str, Tensor],
    carried: Mapping[str, Tensor],
    values: CheckpointValues,
    tokenizer: bytes,
) -> list[Path]:
    """Write an export; existing files are never overwritten.

    Args:
        folder: Created when missing.
        trained: Trained tensors by parameter name.
        carried: Tensors that never changed, by key.
        tokenizer: The tokenizer's model file.

    Returns:
        The files written.

    Raises:
        ConfigError: One of the files is there already, or the folder cannot be made.
        UnavailableError: Writing failed.
    """
    vocabulary = Vocabulary.recorded(values.vocabulary)
    document = values.model_config
    state = export_state_dict(trained, carried, gpt_config(document, "the run's config.yaml"), vocabulary)
    config = export_config(document, vocabulary, TOKENIZER_FILE, WEIGHTS_FILE)
    paths = [folder / name for name in (WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE)]
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, expected a folder for the export. Give another --output-dir.")
    taken = [str(path) for path in paths if path.exists()]
    if taken:
        raise ConfigError(f"{', '.join(taken)} exists already. Give another --output-dir; nothing is overwritten.")
    weights, config_path, tokenizer_path = paths
    partial = weights.with_name(f"{weights.name}.{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, partial)
        partial.replace(weights)
        config_path.write_text(config, encoding="utf-8")
        tokenizer_path.write_bytes(tokenizer)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        with contextlib.suppress(OSError):  # the folder may be a file
            partial.unlink(missing_ok=True)
        raise UnavailableError(
            f"{folder}: the export failed ({error}). Free space or choose another folder."
        ) from error
    return paths
