"""The configuration of a preparation: from YAML and dotted keys to checked dataclasses."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from indextts_job.bounds import Bounds
from indextts_job.config import check_bounds
from indextts_job.config_values import section
from indextts_job.errors import ConfigError
from indextts_job.redaction import redacted
from indextts_job.storage.config import StorageConfig
from indextts_job.storage.urls import demand_endpoint, demand_openable, is_local


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """Files of the base model; paths or URLs."""

    config: str
    """The config.yaml published with the base checkpoint."""
    base_checkpoint: str
    """IndexTTS's gpt.pth, whose conditioning encoders are used."""
    tokenizer: str
    """The tokenizer that training will use: SentencePiece model, or for 2.5 the .tiktoken file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderFiles:
    """Files of the encoders; paths or URLs. Nothing is downloaded by name."""

    w2v_bert: str
    """Folder of facebook/w2v-bert-2.0, with config.json and model.safetensors."""
    statistics: str
    """wav2vec2bert_stats.pt: mean and variance of the hidden states."""
    codec: str
    """2.0: semantic_codec/model.safetensors of amphion/MaskGCT; 2.5: codec.pth."""
    campplus: str = ""
    """campplus_cn_common.bin; needed for 2.5 only."""
    hidden_state: Annotated[int, Bounds(1, 1024)] = 17
    """Number of w2v-BERT's layers that are run. Published inference reads hidden state 17."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioConfig:
    """Where audio lies, and which clips are taken."""

    folder: str = ""
    """Folder or URL that the manifests' audio paths are relative to; empty = the manifest's own folder."""
    min_seconds: Annotated[float, Bounds(0.1, 3600)] = 1.0
    """Shorter clips are refused."""
    max_seconds: Annotated[float, Bounds(0.1, 3600)] = 30.0
    """Longer clips are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsConfig:
    """Which prompts a target gets."""

    per_target: Annotated[int, Bounds(1, 1000)] = 2
    """Prompts of each target, as many as its speaker has."""
    cross_lingual: Annotated[float, Bounds(0, 1)] = 0.0
    """Share of prompts in another language, of speakers who speak several."""
    seed: Annotated[int, Bounds(0, 2**63 - 1)] = 2025
    """Seed of the draws."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConfig:
    """Which utterances are kept for validation; a record's own `split` has precedence."""

    ratio: Annotated[float, Bounds(0, 1)] = 0.01
    """Share of the utterances, or of the speakers."""
    by: Literal["utterance", "speaker"] = "utterance"
    """speaker = a speaker is in one split with all utterances."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareConfig:
    """All settings of a preparation."""

    output: str
    """Folder or URL of the dataset."""
    manifests: tuple[str, ...]
    """JSON lines with id, audio, text, speaker, language, duration; `path` or `path::language`, in this order."""
    model: ModelFiles
    encoders: EncoderFiles
    audio: AudioConfig = field(default_factory=AudioConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    validation: SplitConfig = field(default_factory=SplitConfig)
    speaker: Literal["", "from_name"] = ""
    """from_name = a record without a speaker gets the part of its audio file's name before the first `_`."""
    unit: Annotated[int, Bounds(1, 65536)] = 256
    """Utterances of a unit of work, which is also a shard of the dataset."""
    batch_frames: Annotated[int, Bounds(1, 10**7)] = 6000
    """Frames (50 a second) that w2v-BERT sees at a time; halved where memory runs out."""
    max_refused: Annotated[float, Bounds(0, 1)] = 0.05
    """Share of utterances that may be refused; with more the preparation ends with exit code 65, after all else."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = a GPU if there is one; where the job has asked its scheduler for one and there is none, an error."""
    threads: Annotated[int, Bounds(1, 1024)] = 8
    """Audio files that are read and decoded at a time."""
    storage: StorageConfig = field(default_factory=StorageConfig)


def prepare_config(document: object, where: str, overrides: Iterable[tuple[str, object]] = ()) -> PrepareConfig:
    """The checked configuration.

    Args:
        document: The parsed YAML file; None for an empty one.
        where: Name of the file, for messages.
        overrides: Dotted keys and values, later ones win.

    Raises:
        ConfigError: An unknown or missing key, a wrong type, an impossible value.
    """
    if not isinstance(document, Mapping | None):
        raise ConfigError(f"{where}: holds a {type(document).__name__}, expected keys and values.")
    merged = dict(document or {})
    for key, value in overrides:
        merged = _with(merged, key.split("."), value)
    config: PrepareConfig = section(PrepareConfig, merged, where)
    check_bounds(config, "")
    _check(config)
    return config


def _with(document: Mapping[str, Any], path: list[str], value: object) -> dict[str, Any]:
    inside = document.get(path[0])
    further = _with(inside if isinstance(inside, Mapping) else {}, path[1:], value) if path[1:] else value
    return {**document, path[0]: further}


def _check(config: PrepareConfig) -> None:
    if not config.manifests or not config.output.strip():
        raise ConfigError("manifests or output is empty. Name the manifests to prepare, and where the dataset goes.")
    if config.audio.max_seconds < config.audio.min_seconds:
        raise ConfigError(
            f"audio.max_seconds is {config.audio.max_seconds:g}, expected at least {config.audio.min_seconds:g}, "
            "audio.min_seconds."
        )
    if not is_local(config.output) and demand_openable(config.output) in ("http", "https"):
        raise ConfigError(
            f"output is {redacted(config.output)}: a web server keeps no dataset. Give a folder or a bucket."
        )
    demand_endpoint(config.storage.endpoint_url, "storage.endpoint_url")
