"""w2v-BERT's hidden states of a batch of clips: what the codec and the conditioning encoders read.

The model and its features come from `transformers`. Only the layers below the wanted hidden state are loaded. It is
the one encoder that sees clips of different lengths at a time: its mask makes padding invisible, up to rounding.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from indextts_job.errors import ConfigError, DataError, findings_message
from indextts_job.hashing import identity_hash
from indextts_job.model.config import CONFORMER_INPUT_WIDTH
from indextts_job.model.fingerprint import fingerprint
from indextts_job.prepare.encoders.weights import load_strictly, read_tensors
from indextts_job.prepare.frames import SAMPLE_RATE
from indextts_job.redaction import redacted
from indextts_job.storage import files

Samples = npt.NDArray[np.float32]
MODEL, CONFIG = "model.safetensors", "config.json"
_UNUSED = ("masked_spec_embed", "adapter.")
"""Beginnings of keys behind the hidden states, and of what only training reads."""
LARGEST_CONFIG_BYTES = 2**20


def _transformers() -> Any:  # noqa: ANN401  # imported where it is needed
    try:
        import transformers  # noqa: PLC0415  # an extra, which takes seconds
    except ImportError as error:
        raise ConfigError(
            f"w2v-BERT is run by transformers, which is not usable here ({error}). Install it: pip install "
            "'indextts-job[prepare]'."
        ) from error
    return transformers


@dataclass(frozen=True, slots=True)
class Semantic:
    """w2v-BERT, its feature extractor, and the statistics of its hidden states."""

    model: Any
    """Wav2Vec2BertModel with as many layers as the wanted hidden state has below it."""
    extractor: Any
    mean: Tensor
    """[width] of the hidden states."""
    deviation: Tensor
    fingerprints: dict[str, str]

    def __call__(self, clips: Sequence[Samples]) -> list[Tensor]:
        """Normalised hidden states.

        Args:
            clips: [samples] each, at 16 kHz, with an even number of frames.

        Returns:
            [frames / 2, width] of each clip.
        """
        # Features of each clip alone: mean and variance are over its frames.
        features = [torch.from_numpy(self._features(clip)) for clip in clips]
        lengths = [len(rows) for rows in features]
        padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
        mask = torch.arange(padded.shape[1])[None, :] < torch.tensor(lengths)[:, None]
        hidden = self.model(
            input_features=padded.to(self.mean), attention_mask=mask.to(self.mean.device, torch.int32)
        ).last_hidden_state
        normalised = (hidden - self.mean) / self.deviation
        return [rows[:length] for rows, length in zip(normalised, lengths, strict=True)]

    def _features(self, clip: Samples) -> npt.NDArray[np.float32]:
        found = self.extractor(clip, sampling_rate=SAMPLE_RATE, return_tensors="np")["input_features"]
        return np.asarray(found[0], np.float32)


def load_semantic(folder: str, statistics: str, layers: int, device: torch.device) -> Semantic:
    """Read w2v-BERT and the statistics.

    Args:
        folder: Folder with config.json and model.safetensors.
        statistics: The file with mean and variance.
        layers: Number of layers to run.
        device: Where it runs.

    Raises:
        ConfigError: A file is missing, or `transformers` is.
        DataError: A file is damaged, or its keys or shapes do not fit.
    """
    library = _transformers()
    folder = folder.rstrip("/")
    model = _skeleton(library, f"{folder}/{CONFIG}", layers)
    settings = _settings_hash(model.config)
    tensors = read_tensors(f"{folder}/{MODEL}", "model.safetensors of w2v-BERT", "encoders.w2v_bert")

    def unused(name: str) -> bool:
        return name.startswith(_UNUSED) or _layer_of(name) >= layers

    used = load_strictly(model, tensors, redacted(f"{folder}/{MODEL}"), unused)
    mean, variance = _statistics(statistics)
    return Semantic(
        model=model.eval().requires_grad_(requires_grad=False).to(device),
        extractor=library.SeamlessM4TFeatureExtractor(padding_value=1.0),
        mean=mean.to(device),
        deviation=variance.sqrt().to(device),
        fingerprints={
            "w2v_bert": _with_settings(fingerprint(used), settings),
            "statistics": fingerprint({"mean": mean, "var": variance}),
        },
    )


def _skeleton(library: Any, url: str, layers: int) -> Any:  # noqa: ANN401  # classes of transformers
    """The model without weights."""
    settings = _settings(url, layers)
    try:
        config = library.Wav2Vec2BertConfig(**settings)
        with torch.device("meta"):
            model = library.Wav2Vec2BertModel(config)
        uneven = config.hidden_size % config.num_attention_heads
    except Exception as error:  # the library's releases check values with classes of their own
        raise _wrong(library, url, settings, str(error)) from error
    if config.hidden_size != CONFORMER_INPUT_WIDTH:
        raise DataError(
            f"{redacted(url)}: hidden_size is {config.hidden_size}, the conditioning encoders read "
            f"{CONFORMER_INPUT_WIDTH}. Expected facebook/w2v-bert-2.0."
        )
    if uneven:
        raise _wrong(library, url, settings, "hidden_size is no multiple of num_attention_heads")
    return model


def _wrong(library: Any, url: str, settings: dict[str, Any], what: str) -> DataError:  # noqa: ANN401
    """The error for settings that cannot be used: names all that are not the published ones."""
    published = library.Wav2Vec2BertConfig().to_dict()
    others = [f"{key} is {value!r:.40}, in the release {published[key]!r}" for key, value in settings.items()
              if key in published and key not in _WANTED and value != published[key]]  # fmt: skip
    first = " ".join(redacted(what).split())[:200]
    headline = f"{redacted(url)} is no configuration of w2v-BERT ({first}); its own values are"
    return DataError(findings_message(headline, others, "Take the config.json of facebook/w2v-bert-2.0."))


_CHANGING = (
    "hidden_act",
    "layer_norm_eps",
    "num_attention_heads",
    "position_embeddings_type",
    "rotary_embedding_base",
    "conv_depthwise_kernel_size",
    "left_max_position_embeddings",
    "right_max_position_embeddings",
    "max_source_positions",
    "output_hidden_size",
)
"""Settings that change hidden states and may leave names and shapes of all tensors as they are."""


def _settings_hash(config: Any) -> str:  # noqa: ANN401  # a class of transformers
    """What identifies the settings with which the tensors are used; those of the release give an empty text."""
    published = type(config)()
    changed = {
        key: value for key in _CHANGING if (value := getattr(config, key, None)) != getattr(published, key, None)
    }
    return identity_hash(json.dumps(changed, sort_keys=True, default=str).encode()) if changed else ""


def _with_settings(tensors: str, settings: str) -> str:
    # Fingerprints of the published settings stay those of their tensors, so that nothing is made again for them.
    return identity_hash(f"{tensors} {settings}".encode()) if settings else tensors


def _settings(url: str, layers: int) -> dict[str, Any]:
    content = files.read_input(url, "config.json of w2v-BERT", "encoders.w2v_bert", LARGEST_CONFIG_BYTES)
    try:
        document = json.loads(content)
        there = document["num_hidden_layers"]
        if type(there) is not int:
            raise TypeError(f"num_hidden_layers is {there!r:.40}, expected a whole number")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{redacted(url)}: no configuration of w2v-BERT ({error}).") from error
    if there < layers:
        raise DataError(
            f"{redacted(url)}: {there} layers, but encoders.hidden_state is {layers}. Expected w2v-bert-2.0."
        )
    # Names of classes and files decide nothing here. Without masking in training there is no tensor for it.
    others = {
        key: value for key, value in document.items() if key not in ("architectures", "auto_map", "_name_or_path")
    }
    return {**others, **_WANTED, "num_hidden_layers": layers}


_WANTED = {"num_hidden_layers": 0, "add_adapter": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0}
"""Settings that are ours, whatever a file says."""


def _layer_of(name: str) -> int:
    """Number of the layer that a tensor belongs to; -1 for one in front of the layers."""
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["encoder", "layers"] and parts[2].isdigit() else -1


def _statistics(url: str) -> tuple[Tensor, Tensor]:
    found = read_tensors(url, "statistics of w2v-BERT", "encoders.statistics")
    mean, variance = found.get("mean"), found.get("var")
    shape = (CONFORMER_INPUT_WIDTH,)
    if mean is None or variance is None or mean.shape != shape or variance.shape != shape:
        raise DataError(f"{redacted(url)}: expected `mean` and `var` of {CONFORMER_INPUT_WIDTH} values each.")
    if not (torch.isfinite(mean).all() and (variance > 0).all()):
        raise DataError(f"{redacted(url)}: `mean` is not finite, or `var` not positive. The file is damaged.")
    return mean.float(), variance.float()
