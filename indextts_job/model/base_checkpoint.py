"""The base checkpoint `gpt.pth`: read every published form of it, put its tensors into a model, write an export.

Nothing in a file is executed: tensors are read with `weights_only=True`. The tensors that never train are carried as
they are, in their own precision.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import Tensor

from indextts_job.errors import ConfigError, DataError, findings_message
from indextts_job.model.config import GPTConfig, Shape, carried_shapes, trained_shapes
from indextts_job.model.torch_file import read_torch_file, unusual
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.model.vocabulary import (
    NEW_ROWS_SUFFIX,
    TEXT_TABLES,
    NewRows,
    Vocabulary,
    initial_rows,
    join_rows,
)
from indextts_job.redaction import redacted

LARGEST_TABLE_ROWS = 2**24
EXPORT_SECTION, BASE_PIECES = "indextts_job", "base_pieces"
"""Where an export's config.yaml says how many of its pieces are the released base's."""
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_DROPPED = re.compile(
    r"inference_model\..*"  # the generation wrapper, an alias of everything else
    r"|.*\.lora_.*"
    r"|gpt\.wte\.weight"  # an alias of mel_embedding, set up for inference
    r"|gpt\.h\.\d+\.attn\.(masked_)?bias"  # mask buffers of older library versions
)
_WRAPPERS = ("model", "model_state_dict")
_OTHER_MODEL_KEYS = ("spk_emb_proj.", "lang_embedding.")


@dataclass(frozen=True, slots=True)
class BaseCheckpoint:
    """All tensors of a base checkpoint under their published names."""

    tensors: Mapping[str, Tensor]
    text_pieces: int
    """Pieces of the tokenizer it was trained with: rows of its text tables - 1."""
    frozen_pieces: int | None = None
    """Of those, the pieces of the released base, whose rows stay as they are; None = all. An export of a run that
    added pieces has fewer of them than rows."""


def load_base_checkpoint(url: str, config: GPTConfig) -> BaseCheckpoint:
    """Read `gpt.pth`: a state dict, or a dict that holds one under `model`.

    Args:
        url: Path or URL.
        config: The model whose keys and shapes are expected.

    Raises:
        ConfigError: The file is not there.
        DataError: It cannot be read, or its keys, shapes or dtypes are not the model's. Names them.
    """
    return as_base(_read_state_dict(url), config, redacted(url))


def as_base(state: Mapping[str, Any], config: GPTConfig, where: str) -> BaseCheckpoint:
    """A base checkpoint of the tensors that were read from somewhere.

    Args:
        state: As it was read.
        config: The model whose keys and shapes are expected.
        where: They came from, for messages.

    Raises:
        DataError: Keys, shapes or dtypes are not the model's, or a weight to train from is not finite. Names them.
    """
    tensors = demand_tensors(state, config, where)
    pieces = tensors["text_embedding.weight"].shape[0] - 1
    # Only what training starts from is looked at: to read the rest of a mapped file would take time for nothing.
    broken = [key for key in trained_shapes(config, pieces + 1) if not _finite(tensors[key])]
    if broken:
        findings = [f"{key}: NaN or infinity" for key in broken]
        advice = "A training that broke down may have written it. Take an earlier one, or the released gpt.pth."
        raise DataError(findings_message(f"{where} holds weights that are no numbers", findings, advice))
    return BaseCheckpoint(tensors, pieces)


def _finite(tensor: Tensor) -> bool:
    # One pass without a copy; NaN makes both NaN.
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def demand_tensors(state: Mapping[str, Any], config: GPTConfig, url: str) -> dict[str, Tensor]:
    """The tensors of a state dict under their published names, aliases and leftovers of other tools dropped.

    Args:
        state: As it was read.
        config: The model whose keys and shapes are expected; the number of text rows is the file's own.
        url: Of the file, for messages.

    Raises:
        DataError: Keys, shapes or dtypes are not the model's. Names them.
    """
    tensors = _normalised(state, url)
    rows = tensors.get("text_embedding.weight")
    if rows is None or rows.dim() != 2 or not 2 <= rows.shape[0] <= LARGEST_TABLE_ROWS:
        raise DataError(f"{url}: text_embedding.weight is missing or has no rows. Expected IndexTTS2's gpt.pth.")
    expected = trained_shapes(config, rows.shape[0]) | carried_shapes(config)
    _demand(tensors, expected, url)
    return {key: tensors[key] for key in expected}


def _read_state_dict(url: str) -> Mapping[str, Any]:
    content = read_torch_file(url, "base checkpoint", "inputs.base_checkpoint")
    if isinstance(content, Mapping):
        # Checkpoints of the public trainer, and of the full-layer script, hold the weights among other things.
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping):
        raise DataError(f"{redacted(url)}: holds a {type(content).__name__}, expected a dict of tensors.")
    return content


def _normalised(state: Mapping[str, Any], url: str) -> dict[str, Tensor]:
    nameless = [key for key in state if not isinstance(key, str)]
    if nameless:
        findings = [f"the key {key!r:.80}" for key in nameless]
        raise DataError(findings_message(f"{url} has keys that are no names", findings, "Expected gpt.pth."))
    if any(key.startswith(_OTHER_MODEL_KEYS) for key in state):
        raise DataError(
            f"{url}: this is an IndexTTS-2.5 checkpoint (it has spk_emb_proj or lang_embedding). "
            "This trainer is for IndexTTS2; give its gpt.pth."
        )
    kept = {key.replace(".base_layer.", "."): value for key, value in state.items() if not _DROPPED.fullmatch(key)}
    wrong = [f"{key}: {type(value).__name__}" for key, value in kept.items() if not isinstance(value, Tensor)]
    wrong += [f"{key}: {kind}" for key, value in kept.items() if isinstance(value, Tensor) and (kind := unusual(value))]
    if wrong:
        advice = "Expected gpt.pth, or another file of plain tensors."
        raise DataError(findings_message(f"{url} holds things that are not plain tensors", wrong, advice))
    return kept


def _demand(tensors: Mapping[str, Tensor], expected: Mapping[str, Shape], url: str) -> None:
    findings = [f"{key}: missing, expected {list(shape)}" for key, shape in expected.items() if key not in tensors]
    findings += [f"{key}: unknown key" for key in tensors if key not in expected]
    for key, shape in expected.items():
        if key in tensors and tuple(tensors[key].shape) != shape:
            findings.append(f"{key}: shape {list(tensors[key].shape)}, expected {list(shape)}")
        elif key in tensors and tensors[key].dtype not in FLOAT_DTYPES:
            findings.append(f"{key}: dtype {tensors[key].dtype}, expected float32, float16 or bfloat16")
    if findings:
        advice = "Is it the gpt.pth that belongs to this config.yaml? Both come from one IndexTTS2 release."
        raise DataError(findings_message(f"{url} does not fit the model", findings, advice))


def initialise(
    model: UnifiedVoice,
    base: BaseCheckpoint,
    how: NewRows,
    seed: int,
    trained_rows: Mapping[str, Tensor] | None = None,
) -> None:
    """Put a base checkpoint into a model; new vocabulary rows get their start values.

    Args:
        model: Built for a vocabulary of at least the base's pieces.
        base: Source of all other values.
        how: Start of new rows, see `initial_rows`.
        seed: Of the noise.
        trained_rows: New rows that an earlier run trained already, by table; they come before fresh ones.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {key: value for key, value in base.tensors.items() if key in model.state_dict()}
    if model.vocabulary.extended:
        for key in TEXT_TABLES:
            known = (trained_rows or {}).get(key, base.tensors[key][:0])
            fresh = initial_rows(base.tensors[key], model.vocabulary.new_rows - len(known), how, generator)
            tensors[key + NEW_ROWS_SUFFIX] = torch.cat([known.float(), fresh])
    model.load_state_dict(tensors, strict=True)


def split_rows(base: BaseCheckpoint) -> tuple[BaseCheckpoint, dict[str, Tensor]]:
    """A base whose text tables hold rows that a run has trained: the released base's rows, and the trained ones.

    Returns:
        The base as it was released, and its further rows [text_pieces - frozen_pieces, ...] by table.
    """
    frozen = base.text_pieces if base.frozen_pieces is None else base.frozen_pieces
    if frozen >= base.text_pieces:
        return base, {}
    rows = {key: base.tensors[key][frozen:-1] for key in TEXT_TABLES}
    tables = {key: torch.cat([base.tensors[key][:frozen], base.tensors[key][-1:]]) for key in TEXT_TABLES}
    return BaseCheckpoint({**base.tensors, **tables}, frozen), rows


def carried_tensors(model: UnifiedVoice, base: BaseCheckpoint) -> dict[str, Tensor]:
    """Tensors of the base that this run never changes: conditioning modules, and frozen text tables if extended."""
    trained = dict(model.named_parameters())
    return {key: value for key, value in base.tensors.items() if key not in trained}


def export_state_dict(
    trained: Mapping[str, Tensor], carried: Mapping[str, Tensor], config: GPTConfig, vocabulary: Vocabulary
) -> dict[str, Tensor]:
    """The full state dict that published inference loads, in the base checkpoint's precision.

    Args:
        trained: Trained tensors by parameter name, new rows under `…_new`.
        carried: Tensors that never changed.
        config: The model.
        vocabulary: Sizes of the text tables.

    Returns:
        Exactly the base checkpoint's keys; text tables have one row per piece and the spare row.
    """
    dtype = next(iter(carried.values())).dtype
    full = {**carried, **{key: value for key, value in trained.items() if not key.endswith(NEW_ROWS_SUFFIX)}}
    if vocabulary.extended:
        for key in TEXT_TABLES:
            full[key] = join_rows(carried[key], trained[key + NEW_ROWS_SUFFIX].to(carried[key].dtype))
    expected = trained_shapes(config, vocabulary.rows) | carried_shapes(config)
    _demand(full, expected, "export")
    return {key: (full[key] if key in carried else full[key].to(dtype)).contiguous().clone() for key in expected}


def frozen_pieces(document: Mapping[str, Any], source: str) -> int | None:
    """How many pieces an export's config.yaml gives to the released base; None in a release's own.

    Raises:
        ConfigError: It says something else.
    """
    section = document.get(EXPORT_SECTION)
    pieces = section.get(BASE_PIECES) if isinstance(section, Mapping) else None
    if section is not None and (not isinstance(pieces, int) or isinstance(pieces, bool) or pieces < 1):
        raise ConfigError(f"{source}: {EXPORT_SECTION}.{BASE_PIECES} is {pieces!r}, expected a whole number from 1 on.")
    return pieces


def export_config(document: Mapping[str, Any], vocabulary: Vocabulary, tokenizer_name: str, weights_name: str) -> str:
    """The `config.yaml` that belongs to an export: everything carried through except what changed.

    Args:
        document: The base release's config.yaml, parsed.
        vocabulary: The tokenizer's size; the constructor adds the spare row itself.
        tokenizer_name: File name of the tokenizer beside the export.
        weights_name: File name of the exported weights.
    """
    exported = dict(document)
    exported["gpt"] = {**document["gpt"], "number_text_tokens": vocabulary.pieces}
    dataset = document.get("dataset")
    exported["dataset"] = {**(dataset if isinstance(dataset, Mapping) else {}), "bpe_model": tokenizer_name}
    exported["gpt_checkpoint"] = weights_name
    if vocabulary.extended:
        # A run that starts from this export keeps these rows frozen. Published inference reads past the key.
        exported[EXPORT_SECTION] = {BASE_PIECES: vocabulary.base_pieces}
    else:
        exported.pop(EXPORT_SECTION, None)
    return yaml.safe_dump(exported, sort_keys=False, allow_unicode=True)
