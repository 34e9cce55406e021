"""The base checkpoint `gpt.pth`: read every published form of it and load its tensors into a model.

No code in a file is executed: tensors are read with `weights_only=True`. The tensors that never train keep their
values and their precision.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from indextts_job.checkpoint.tensor_names import TEXT_TABLES
from indextts_job.errors import ConfigError, DataError, findings_message
from indextts_job.model.config import GPTConfig, carried_shapes, of_version, trained_shapes
from indextts_job.model.languages import NAMES
from indextts_job.model.torch_file import read_torch_file, unusual
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.model.versions import OUR_SECTION, V2_0, ModelVersion, Shape, version_of_checkpoint
from indextts_job.redaction import redacted

LARGEST_TABLE_ROWS = 2**24
"""The bound of `number_text_tokens` in a configuration."""
BASE_PIECES, NEW_PIECES_AT, LANGUAGES = "base_pieces", "new_pieces_at", "languages"
"""Keys of our section in an export's config.yaml: how many of its pieces come from the released base, the id of the
first that does not, and the languages whose rows runs have trained."""
LANGUAGE_TABLE = "lang_embedding.weight"
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_DROPPED = re.compile(
    r"inference_model\..*"  # the generation wrapper repeats all other tensors
    r"|.*\.lora_.*"  # adapters; the weights below them stand under `.base_layer.`
    r"|gpt\.wte\.weight"  # an alias of mel_embedding, set up for inference
    r"|gpt\.h\.\d+\.attn\.(masked_)?bias"  # mask buffers of older versions of transformers
)
# Checkpoints of the public trainer, and of its full-layer script, keep the weights under one of these keys.
_WRAPPERS = ("model", "model_state_dict")


@dataclass(frozen=True, slots=True)
class BaseCheckpoint:
    """All tensors of a base checkpoint under their published names."""

    tensors: Mapping[str, Tensor]
    text_pieces: int
    """Pieces of the tokenizer it was trained with: rows of its text tables - 1."""
    frozen_pieces: int | None = None
    """Number of those pieces that come from the released base, whose rows stay frozen; None = all. It is smaller than
    `text_pieces` in an export of a run that added pieces."""
    new_pieces_at: int | None = None
    """Id of the first piece that such a run has added; None = behind all pieces of the released base."""
    version: ModelVersion = V2_0
    adapters_left_out: int = 0
    """Number of tensors of adapters in the file, which are not part of the base."""
    languages: tuple[str, ...] = ()
    """Codes of the language rows that runs have trained, besides those of the release."""


def load_base_checkpoint(url: str, config: GPTConfig) -> BaseCheckpoint:
    """Read `gpt.pth`: a state dict, or a dict that holds one under `model`.

    Args:
        url: Path or URL.
        config: The model whose keys and shapes are expected.

    Raises:
        ConfigError: The file does not exist.
        DataError: The file cannot be read, or its keys, shapes or dtypes are not the model's; the message names them.
    """
    return as_base(_read_state_dict(url), config, redacted(url))


def load_conditioning(url: str, config: GPTConfig, key: str) -> tuple[GPTConfig, dict[str, Tensor]]:
    """The conditioning encoders in `gpt.pth`, and none of the rest of it, which would be gigabytes.

    Args:
        url: Path or URL.
        config: The model; the file tells its version.
        key: The configuration key that names the file.

    Returns:
        The model in the version of the file, and the tensors of `carried_shapes`.

    Raises:
        ConfigError: The file does not exist.
        DataError: The file cannot be read, or a key, shape or dtype is not the model's; the message names them.
    """
    state, where = _read_state_dict(url, key), redacted(url)
    config = of_version(config, version_of_checkpoint(_named(state, where), where), where)
    expected = carried_shapes(config)
    tensors = _plain_tensors({key: value for key, value in state.items() if key in expected}, where)
    demand_fit(tensors, expected, where)
    return config, tensors


def as_base(state: Mapping[str, Any], config: GPTConfig, where: str) -> BaseCheckpoint:
    """Check a state dict and make a base checkpoint of it.

    Args:
        state: Names and values as they were read, not checked yet.
        config: The model whose shapes are expected; the keys tell the version.
        where: The file or run that they come from, for messages.

    Raises:
        DataError: Keys, shapes or dtypes are not the model's, or a trained weight is not finite. Names them.
    """
    config = of_version(config, version_of_checkpoint(_named(state, where), where), where)
    tensors = demand_tensors(state, config, where)
    pieces = tensors["text_embedding.weight"].shape[0] - 1
    # Only the trained weights are checked. The file is mapped, and checking the others would read all of it.
    broken = [key for key in trained_shapes(config, pieces + 1) if not all_finite(tensors[key])]
    if broken:
        findings = [f"{key}: NaN or infinity" for key in broken]
        advice = "A training that broke down may have written it. Take an earlier one, or the released gpt.pth."
        raise DataError(findings_message(f"{where} holds weights that are no numbers", findings, advice))
    adapters = sum(".lora_" in key for key in state)
    return BaseCheckpoint(tensors, pieces, version=config.version, adapters_left_out=adapters)


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    if not tensor.numel():
        return True
    # One pass without a copy, a fifth of the time of `isfinite`. With a NaN in the tensor both results are NaN.
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def demand_tensors(state: Mapping[str, Any], config: GPTConfig, url: str) -> dict[str, Tensor]:
    """The tensors of a state dict under their published names, without aliases and the additions of other tools.

    Args:
        state: Names and values as they were read, not checked yet.
        config: The model whose keys and shapes are expected, except the number of text rows, which the file decides.
        url: The file, for messages.

    Raises:
        DataError: Keys, shapes or dtypes are not the model's; the message names them.
    """
    tensors = _plain_tensors(_named(state, url), url)
    rows = tensors.get("text_embedding.weight")
    if rows is None or rows.dim() != 2 or not 2 <= rows.shape[0] <= LARGEST_TABLE_ROWS:
        raise DataError(f"{url}: text_embedding.weight is missing or has no rows. Expected IndexTTS's gpt.pth.")
    expected = trained_shapes(config, rows.shape[0]) | carried_shapes(config)
    demand_fit(tensors, expected, url)
    return {key: tensors[key] for key in expected}


def _read_state_dict(url: str, key: str = "inputs.base_checkpoint") -> Mapping[str, Any]:
    content = read_torch_file(url, "base checkpoint", key)
    if isinstance(content, Mapping):
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping):
        raise DataError(f"{redacted(url)}: holds a {type(content).__name__}, expected a dict of tensors.")
    return content


def _named(state: Mapping[str, Any], url: str) -> Mapping[str, Any]:
    nameless = [key for key in state if not isinstance(key, str)]
    if nameless:
        findings = [f"the key {key!r:.80}" for key in nameless]
        raise DataError(findings_message(f"{url} has keys that are not text", findings, "Expected gpt.pth."))
    return state


def _plain_tensors(state: Mapping[str, Any], url: str) -> dict[str, Tensor]:
    # A library for adapters (peft) wraps each layer and puts `.base_layer.` into the name of its weight.
    kept = {key.replace(".base_layer.", "."): value for key, value in state.items() if not _DROPPED.fullmatch(key)}
    wrong = [f"{key}: {kind}" for key, value in kept.items() if (kind := _not_plain(value))]
    if wrong:
        advice = "Expected gpt.pth, or another file of plain tensors."
        raise DataError(findings_message(f"{url} has values that are not plain tensors", wrong, advice))
    return kept


def _not_plain(value: object) -> str:
    """What a value is instead of a plain tensor; empty for a plain tensor."""
    return unusual(value) if isinstance(value, Tensor) else type(value).__name__


def demand_fit(tensors: Mapping[str, Tensor], expected: Mapping[str, Shape], source: str) -> None:
    """Refuse tensors whose keys, shapes or dtypes are not the expected ones.

    Args:
        tensors: The tensors to check.
        expected: Shape by key.
        source: The file or run that they come from, for messages.

    Raises:
        DataError: The message names every key that does not fit.
    """
    if findings := list(_misfits(tensors, expected)):
        advice = "Is it the gpt.pth that belongs to this config.yaml? Both come from one IndexTTS release."
        raise DataError(findings_message(f"{source} does not fit the model", findings, advice))


def _misfits(tensors: Mapping[str, Tensor], expected: Mapping[str, Shape]) -> Iterator[str]:
    # Keys come before shapes: with the wrong file nearly all keys are wrong, and only the first findings are shown.
    yield from (f"{key}: missing, expected {list(shape)}" for key, shape in expected.items() if key not in tensors)
    yield from (f"{key}: unknown key" for key in tensors if key not in expected)
    for key, shape in expected.items():
        if key in tensors and (fault := _misfit(tensors[key], shape)):
            yield f"{key}: {fault}"


def _misfit(tensor: Tensor, shape: Shape) -> str:
    if tuple(tensor.shape) != shape:
        return f"shape {list(tensor.shape)}, expected {list(shape)}"
    if tensor.dtype not in FLOAT_DTYPES:
        return f"dtype {tensor.dtype}, expected float32, float16 or bfloat16"
    return ""


def split_rows(base: BaseCheckpoint) -> tuple[BaseCheckpoint, dict[str, Tensor]]:
    """Split the text tables of an export into the rows of the released base and the rows that a run has trained.

    Returns:
        The base with the released rows only, and the trained rows [text_pieces - frozen_pieces, ...] by table.
    """
    frozen = base.text_pieces if base.frozen_pieces is None else base.frozen_pieces
    if frozen >= base.text_pieces:
        return base, {}
    start = frozen if base.new_pieces_at is None else base.new_pieces_at
    stop = start + base.text_pieces - frozen
    rows = {key: base.tensors[key][start:stop] for key in TEXT_TABLES}
    # The last row of a table is the spare row, which stays with the released ones.
    tables = {key: torch.cat([base.tensors[key][:start], base.tensors[key][stop:]]) for key in TEXT_TABLES}
    return replace(base, tensors={**base.tensors, **tables}, text_pieces=frozen, new_pieces_at=None), rows


def carried_tensors(model: UnifiedVoice, base: BaseCheckpoint) -> dict[str, Tensor]:
    """The tensors of the base that this run never changes: conditioning modules, and frozen text tables if extended."""
    trained = dict(model.named_parameters())
    return {key: value for key, value in base.tensors.items() if key not in trained}


def described_by_export(base: BaseCheckpoint, document: Mapping[str, Any], source: str) -> BaseCheckpoint:
    """A base with what its config.yaml says about it: a `gpt.pth` alone does not say which rows runs have trained.

    Args:
        base: As it was read from its `gpt.pth`.
        document: The config.yaml beside it. That of a release says nothing.
        source: Its path or URL, for messages.

    Raises:
        ConfigError: A key holds something else than it should.
    """
    section = document.get(OUR_SECTION)
    if section is None:
        return base
    if not isinstance(section, Mapping):
        raise ConfigError(f"{source}: {OUR_SECTION} is {section!r:.80}, expected keys and values.")
    pieces = _row_number(section, BASE_PIECES, source)
    at = _row_number(section, NEW_PIECES_AT, source)
    if pieces is not None and at is not None and at > pieces:
        raise ConfigError(f"{source}: {OUR_SECTION}.{NEW_PIECES_AT} is {at}, behind all {pieces} pieces of its base.")
    return replace(base, frozen_pieces=pieces, new_pieces_at=at, languages=_languages(section, source))


def _languages(section: Mapping[str, Any], source: str) -> tuple[str, ...]:
    languages = section.get(LANGUAGES, [])
    if not isinstance(languages, list) or not all(language in NAMES for language in languages):
        raise ConfigError(f"{source}: {OUR_SECTION}.{LANGUAGES} is {languages!r:.80}, expected language codes.")
    return tuple(languages)


def _row_number(section: Mapping[str, Any], key: str, source: str) -> int | None:
    number = section.get(key)
    if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
        raise ConfigError(f"{source}: {OUR_SECTION}.{key} is {number!r}, expected a whole number from 1 on.")
    return number
