"""Shapes of UnifiedVoice, from a released `config.yaml` (its `gpt` section) and the facts of its version.

`trained_shapes` and `carried_shapes` list every key of a base checkpoint. Pure: reads no file, needs no torch.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

from indextts_job.bounds import Bounds
from indextts_job.errors import ConfigError
from indextts_job.model.versions import V2_0, ModelVersion, Shape, version_of_config

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

EMOTION_WIDTH = 1024
"""Width of the emotion resampler, a constant of the published constructor."""
RELATIVE_POSITIONS = 5000
"""Length of the conformers' position buffer `pe`."""
CONFORMER_INPUT_WIDTH = 1024
"""Width of the w2v-BERT features that the conformers read."""
RESAMPLER_HEAD_WIDTH = 64
RESAMPLER_LAYERS = 2
DEPTHWISE_KERNEL = 15

# The bounds are far above every release. They keep a damaged file from asking for all memory of the machine.
Width = Annotated[int, Bounds(1, 2**16)]
Count = Annotated[int, Bounds(1, 1024)]
"""Number of layers, heads or blocks."""
Rows = Annotated[int, Bounds(1, 2**24)]
"""Number of rows of a table."""
Token = Annotated[int, Bounds(0, 2**24)]
"""A token id."""
Tokens = TypeVar("Tokens", int, "npt.NDArray[np.int32]", "npt.NDArray[np.float64]")
"""A number of tokens, or those of many samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformerConfig:
    """One conditioning encoder: `condition_module` or `emo_condition_module`."""

    output_size: Width
    linear_units: Width
    attention_heads: Count
    num_blocks: Count
    perceiver_mult: Count = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class GPTConfig:
    """The version of a model, and the keys of its `gpt` section that decide shapes and token ids."""

    model_dim: Width
    layers: Count
    heads: Count
    max_text_tokens: Rows
    max_mel_tokens: Rows
    number_text_tokens: Rows
    number_mel_codes: Rows
    start_mel_token: Rows
    stop_mel_token: Token
    start_text_token: Token
    stop_text_token: Token
    condition_module: ConformerConfig | None
    """None in a file of a version that has no encoder of the speaker's conditioning."""
    emo_condition_module: ConformerConfig
    version: ModelVersion = V2_0

    @property
    def speaker_shape(self) -> Shape:
        """Shape of a sample's conditioning array."""
        return self.version.speaker_shape(self.model_dim)

    @property
    def number_codes(self) -> int:
        """Number of codes that a sample may hold: 0 .. start_mel_token - 1."""
        return self.start_mel_token

    def sample_tokens(self, text_tokens: Tokens, code_tokens: Tokens) -> Tokens:
        """Number of rows of one sample, or of each of several, in a packed sequence.

        The conditioning rows, the text between start and stop, and the codes after their start token.
        """
        # The stop code has no counted target and no row attends to it, so it is no input.
        return self.version.conditioning_rows + text_tokens + 2 + code_tokens + 1


def gpt_config(document: object, source: str) -> GPTConfig:
    """Read the model's shapes from a parsed `config.yaml`.

    Args:
        document: The parsed YAML file.
        source: Path or URL of the file, for messages.

    Raises:
        ConfigError: A key is missing or of the wrong type, or the file describes another model.
    """
    if not isinstance(document, Mapping) or not isinstance(document.get("gpt"), Mapping):
        raise ConfigError(
            f"{source}: no `gpt` section. Expected the config.yaml that is published with IndexTTS's gpt.pth; "
            "give its path as `inputs.model_config` (or --config)."
        )
    _demand_storable(document, source, "")
    section: Mapping[str, object] = document["gpt"]
    version = version_of_config(document)
    _refuse_other_models(section, source)
    # Files of a version without this encoder may describe one all the same.
    speaker = _conformer(section, "condition_module", source) if _describes_speakers(section, version) else None
    others = {
        "condition_module": speaker,
        "emo_condition_module": _conformer(section, "emo_condition_module", source),
        "version": version,
    }
    config: GPTConfig = _numbers(GPTConfig, section, f"{source}: gpt", others)
    if config.model_dim % config.heads:
        raise ConfigError(f"{source}: gpt.model_dim {config.model_dim} is not divisible by gpt.heads {config.heads}.")
    _demand_tokens_in_tables(config, source)
    return of_version(config, version, source)


def of_version(config: GPTConfig, version: ModelVersion, source: str) -> GPTConfig:
    """The same sizes in a version that something knows better than the file, a checkpoint for example.

    Args:
        config: The sizes.
        version: Their version.
        source: Path or URL of the file, for messages.

    Raises:
        ConfigError: The file lacks what this version needs.
    """
    if version.conditioning_encoder and config.condition_module is None:
        raise ConfigError(f"{source}: gpt.condition_module is missing; {version} has this conditioning encoder.")
    if config.model_dim == version.speaker_width:
        # A projected speaker vector would have the shape of one that is not.
        raise ConfigError(f"{source}: gpt.model_dim is {config.model_dim}, the width of a speaker vector of {version}.")
    return replace(config, version=version)


def _describes_speakers(section: Mapping[str, object], version: ModelVersion) -> bool:
    return version.conditioning_encoder or isinstance(section.get("condition_module"), Mapping)


def _demand_storable(document: object, source: str, key: str) -> None:
    """Refuse values that JSON cannot hold: a checkpoint's manifest carries the whole document.

    Args:
        document: The document or a part of it.
        source: Path or URL of the file, for messages.
        key: Path of the part; empty for the whole document.
    """
    for place, value in _leaves(document, key):
        if isinstance(value, float) and math.isfinite(value):
            continue
        if not isinstance(value, (str, bool, int, type(None))):
            raise ConfigError(f"{source}: {place} is {value!r}, expected a finite number, a text or a list of them.")


def _leaves(value: object, key: str) -> Iterator[tuple[str, object]]:
    """The values of nested mappings and lists, each with its path."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _leaves(entry, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for place, entry in enumerate(value):
            yield from _leaves(entry, f"{key}[{place}]")
    else:
        yield key, value


def _demand_tokens_in_tables(config: GPTConfig, source: str) -> None:
    for name, rows in (
        ("start_mel_token", config.number_mel_codes),
        ("stop_mel_token", config.number_mel_codes),
        ("start_text_token", config.number_text_tokens),
        ("stop_text_token", config.number_text_tokens),
    ):
        if getattr(config, name) >= rows:
            raise ConfigError(f"{source}: gpt.{name} is {getattr(config, name)}, but there are {rows} ids from 0 on.")


def _refuse_other_models(section: Mapping[str, object], source: str) -> None:
    if section.get("use_mel_codes_as_input", True) is not True:
        raise ConfigError(f"{source}: gpt.use_mel_codes_as_input is false; IndexTTS ships true only.")
    kind = section.get("condition_type", "conformer_perceiver")
    if kind != "conformer_perceiver":
        raise ConfigError(f"{source}: gpt.condition_type is {kind!r}; IndexTTS has 'conformer_perceiver'.")


def _conformer(section: Mapping[str, object], name: str, source: str) -> ConformerConfig:
    module = section.get(name)
    if not isinstance(module, Mapping):
        raise ConfigError(f"{source}: gpt.{name} is missing; it describes a conditioning encoder.")
    config: ConformerConfig = _numbers(ConformerConfig, module, f"{source}: gpt.{name}", {})
    if config.output_size % config.attention_heads:
        raise ConfigError(
            f"{source}: gpt.{name}.output_size {config.output_size} is not divisible by attention_heads "
            f"{config.attention_heads}."
        )
    return config


def _numbers(cls: Any, section: Mapping[str, object], where: str, others: Mapping[str, object]) -> Any:  # noqa: ANN401
    """A dataclass from the keys of a section.

    Args:
        cls: A dataclass whose fields, except those in `others`, are whole numbers with `Bounds`.
        section: The section of the document.
        where: File and path of the section, for messages.
        others: Values of the remaining fields.
    """
    hints = get_type_hints(cls, include_extras=True)
    values = dict(others)
    for field in fields(cls):
        if field.name in others or (field.name not in section and field.default is not MISSING):
            continue
        (bounds,) = hints[field.name].__metadata__
        values[field.name] = _number(section.get(field.name), bounds, f"{where}.{field.name}")
    return cls(**values)


def _number(value: object, bounds: Bounds, where: str) -> int:
    # In Python a bool is an int, but `layers: true` is a mistake.
    if isinstance(value, bool) or not isinstance(value, int) or value not in bounds:
        raise ConfigError(f"{where}: found {value!r:.80}, expected a whole number, {bounds}.")
    return value


def trained_shapes(config: GPTConfig, text_rows: int) -> dict[str, Shape]:
    """Keys and shapes of the tensors that get a gradient in this training.

    Args:
        config: The model's sizes.
        text_rows: Rows of the text tables: tokenizer pieces + 1 (the last row is never used as an input).
    """
    width = config.model_dim
    # One vector per position: the texts' start and stop count too, and the codes' start, stop and one conditioning
    # input, as the published constructor counts them.
    text_positions, code_positions = config.max_text_tokens + 2, config.max_mel_tokens + 3
    shapes: dict[str, Shape] = {}
    for i in range(config.layers):
        block = f"gpt.h.{i}"
        for norm in ("ln_1", "ln_2"):
            shapes |= _affine(f"{block}.{norm}", (width,), width)
        # Stored [in, out] as the published transformer block does: y = x W + b.
        shapes |= _affine(f"{block}.attn.c_attn", (width, 3 * width), 3 * width)
        shapes |= _affine(f"{block}.attn.c_proj", (width, width), width)
        shapes |= _affine(f"{block}.mlp.c_fc", (width, 4 * width), 4 * width)
        shapes |= _affine(f"{block}.mlp.c_proj", (4 * width, width), width)
    shapes |= _affine("gpt.ln_f", (width,), width)
    shapes |= _affine("final_norm", (width,), width)
    shapes["text_embedding.weight"] = (text_rows, width)
    shapes |= _affine("text_head", (text_rows, width), text_rows)
    shapes["mel_embedding.weight"] = (config.number_mel_codes, width)
    shapes |= _affine("mel_head", (config.number_mel_codes, width), config.number_mel_codes)
    shapes["text_pos_embedding.emb.weight"] = (text_positions, width)
    shapes["mel_pos_embedding.emb.weight"] = (code_positions, width)
    if config.version.language_rows:
        shapes["lang_embedding.weight"] = (config.version.language_rows, width)
    if config.version.speaker_width:
        shapes |= _affine("spk_emb_proj", (width, config.version.speaker_width), width)
    else:
        shapes["speed_emb.weight"] = (2, width)
    return shapes


def carried_shapes(config: GPTConfig) -> dict[str, Shape]:
    """Keys and shapes of the tensors that never train: those of the conditioning encoders.

    The dataset stores the outputs of these encoders, so training does not run them. The tensors are copied unchanged
    from the base checkpoint to the export.
    """
    width = config.model_dim
    emotion = config.emo_condition_module
    speaker = config.condition_module if config.version.conditioning_encoder else None
    shapes = _affine("emovec_layer", (width, EMOTION_WIDTH), width) | _affine("emo_layer", (width, width), width)
    if speaker:
        shapes |= _conformer_shapes("conditioning_encoder", speaker)
    shapes |= _conformer_shapes("emo_conditioning_encoder", emotion)
    if speaker:
        shapes |= _resampler_shapes("perceiver_encoder", speaker, config.version.speaker_latents or 0, width)
    return shapes | _resampler_shapes("emo_perceiver_encoder", emotion, 1, EMOTION_WIDTH)


def _affine(name: str, weight: Shape, bias: int) -> dict[str, Shape]:
    return {f"{name}.weight": weight, f"{name}.bias": (bias,)}


def _conformer_shapes(name: str, module: ConformerConfig) -> dict[str, Shape]:
    size, heads, hidden = module.output_size, module.attention_heads, module.linear_units
    shapes: dict[str, Shape] = {}
    shapes |= _affine(f"{name}.embed.conv.0", (size, 1, 3, 3), size)
    # A 3x3 convolution of stride 2 leaves (width - 1) // 2 columns (the published `conv2d2` input layer).
    shapes |= _affine(f"{name}.embed.out.0", (size, size * ((CONFORMER_INPUT_WIDTH - 1) // 2)), size)
    shapes[f"{name}.embed.pos_enc.pe"] = (1, RELATIVE_POSITIONS, size)
    shapes |= _affine(f"{name}.after_norm", (size,), size)
    for i in range(module.num_blocks):
        block = f"{name}.encoders.{i}"
        for bias in ("pos_bias_u", "pos_bias_v"):
            shapes[f"{block}.self_attn.{bias}"] = (heads, size // heads)
        for part in ("q", "k", "v", "out"):
            shapes |= _affine(f"{block}.self_attn.linear_{part}", (size, size), size)
        shapes[f"{block}.self_attn.linear_pos.weight"] = (size, size)
        shapes |= _affine(f"{block}.feed_forward.w_1", (hidden, size), hidden)
        shapes |= _affine(f"{block}.feed_forward.w_2", (size, hidden), size)
        shapes |= _affine(f"{block}.conv_module.pointwise_conv1", (2 * size, size, 1), 2 * size)
        shapes |= _affine(f"{block}.conv_module.depthwise_conv", (size, 1, DEPTHWISE_KERNEL), size)
        shapes |= _affine(f"{block}.conv_module.norm", (size,), size)
        shapes |= _affine(f"{block}.conv_module.pointwise_conv2", (size, size, 1), size)
        for norm in ("ff", "mha", "conv", "final"):
            shapes |= _affine(f"{block}.norm_{norm}", (size,), size)
    return shapes


def _resampler_shapes(name: str, module: ConformerConfig, latents: int, width: int) -> dict[str, Shape]:
    attention = module.attention_heads * RESAMPLER_HEAD_WIDTH
    # The gate doubles the first layer, so the published resampler makes the hidden width 2/3 of width x mult.
    gated = int(width * module.perceiver_mult * 2 / 3)
    shapes: dict[str, Shape] = {
        f"{name}.latents": (latents, width),
        f"{name}.norm.gamma": (width,),
    }
    shapes |= _affine(f"{name}.proj_context", (width, module.output_size), width)
    for i in range(RESAMPLER_LAYERS):
        layer = f"{name}.layers.{i}"
        shapes[f"{layer}.0.to_q.weight"] = (attention, width)
        shapes[f"{layer}.0.to_kv.weight"] = (2 * attention, width)
        shapes[f"{layer}.0.to_out.weight"] = (width, attention)
        shapes |= _affine(f"{layer}.1.0", (2 * gated, width), 2 * gated)
        shapes |= _affine(f"{layer}.1.2", (width, gated), width)
    return shapes
