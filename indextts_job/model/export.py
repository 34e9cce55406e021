"""An export: the `gpt.pth`, `config.yaml` and tokenizer that published inference loads."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from indextts_job.checkpoint.tensor_names import TEXT_TABLES
from indextts_job.checkpoint.values import CheckpointValues
from indextts_job.errors import ConfigError, UnavailableError
from indextts_job.model.base_checkpoint import BASE_PIECES, EXPORT_SECTION, demand_fit
from indextts_job.model.config import GPTConfig, carried_shapes, gpt_config, trained_shapes
from indextts_job.model.vocabulary import NEW_ROWS_SUFFIX, Vocabulary, join_rows

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
        folder: Folder of the export; created when missing.
        trained: Trained tensors by parameter name.
        carried: Tensors that never changed, by key.
        tokenizer: Content of the tokenizer's model file.

    Returns:
        The files written.

    Raises:
        ConfigError: One of the files exists already, or the folder is a file.
        UnavailableError: Writing failed.
    """
    vocabulary = Vocabulary.recorded(values.vocabulary)
    document = values.model_config
    # Everything that can fail because of the run's contents comes before the first file is written.
    state = export_state_dict(trained, carried, gpt_config(document, "the run's config.yaml"), vocabulary)
    config = export_config(document, vocabulary, TOKENIZER_FILE, WEIGHTS_FILE)
    paths = [folder / name for name in (WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE)]
    _demand_free(folder, paths)
    weights, config_path, tokenizer_path = paths
    # Under another name until it is complete, so that a write that breaks off leaves no gpt.pth.
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


def _demand_free(folder: Path, paths: Sequence[Path]) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, expected a folder for the export. Give another --output-dir.")
    taken = [str(path) for path in paths if path.exists()]
    if taken:
        raise ConfigError(f"{', '.join(taken)} exists already. Give another --output-dir; nothing is overwritten.")


def export_state_dict(
    trained: Mapping[str, Tensor], carried: Mapping[str, Tensor], config: GPTConfig, vocabulary: Vocabulary
) -> dict[str, Tensor]:
    """The full state dict that published inference loads, in the base checkpoint's precision.

    Args:
        trained: Trained tensors by parameter name, new rows under `…_new`.
        carried: Tensors that never changed, by key.
        config: The model, for the expected keys and shapes.
        vocabulary: Sizes of the text tables.

    Returns:
        Exactly the base checkpoint's keys; text tables have one row per piece and the spare row.
    """
    # All tensors of a release have one dtype. Those that never trained still have it.
    dtype = next(iter(carried.values())).dtype
    full = {**carried, **{key: value for key, value in trained.items() if not key.endswith(NEW_ROWS_SUFFIX)}}
    if vocabulary.extended:
        for key in TEXT_TABLES:
            full[key] = join_rows(carried[key], trained[key + NEW_ROWS_SUFFIX].to(carried[key].dtype))
    expected = trained_shapes(config, vocabulary.rows) | carried_shapes(config)
    demand_fit(full, expected, "export")
    # A view would be saved with the whole storage behind it.
    return {key: (full[key] if key in carried else full[key].to(dtype)).contiguous().clone() for key in expected}


def export_config(document: Mapping[str, Any], vocabulary: Vocabulary, tokenizer_name: str, weights_name: str) -> str:
    """The `config.yaml` of an export: the base release's, with the keys that the run has changed.

    Args:
        document: The base release's config.yaml, parsed.
        vocabulary: The tokenizer's size.
        tokenizer_name: File name of the tokenizer beside the export.
        weights_name: File name of the exported weights.
    """
    exported = dict(document)
    # Without the spare row, which the published constructor adds itself.
    exported["gpt"] = {**document["gpt"], "number_text_tokens": vocabulary.pieces}
    dataset = document.get("dataset")
    exported["dataset"] = {**(dataset if isinstance(dataset, Mapping) else {}), "bpe_model": tokenizer_name}
    exported["gpt_checkpoint"] = weights_name
    if vocabulary.extended:
        # A run that starts from this export keeps these rows frozen. Published inference ignores the key.
        exported[EXPORT_SECTION] = {BASE_PIECES: vocabulary.base_pieces}
    else:
        exported.pop(EXPORT_SECTION, None)
    return yaml.safe_dump(exported, sort_keys=False, allow_unicode=True)
