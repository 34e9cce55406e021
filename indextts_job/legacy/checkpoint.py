"""Checkpoints of the old trainer (`latest.pth`, `model_step*.pth`), read without running anything from them.

Weights, moments and the step can be trusted; the position cannot: it is a batch index into a shuffle that nobody can
rebuild. Formats and defects: the public trainer `train_gpt_v2.py`; moments are keyed by the index of a parameter in the
order of the state dict without its two `pe` buffers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indextts_job.errors import DataError
from indextts_job.model.base_checkpoint import demand_tensors
from indextts_job.model.config import GPTConfig
from indextts_job.model.torch_file import read_torch_file

_POSITION_BUFFER = ".embed.pos_enc.pe"


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyCheckpoint:
    """What an old checkpoint holds that can be used."""

    tensors: Mapping[str, Tensor]
    """The full state dict under its published names."""
    text_pieces: int
    step: int
    moments: Mapping[str, tuple[Tensor, Tensor]] | None
    """(exp_avg, exp_avg_sq) by published name; None when they are missing or do not fit."""
    notes: tuple[str, ...]
    """What is not taken over, and why."""


def read_legacy_checkpoint(url: str, config: GPTConfig) -> LegacyCheckpoint:
    """Read an old checkpoint.

    Args:
        url: Path or URL.
        config: The model.

    Raises:
        ConfigError: It is not there.
        DataError: It is not a checkpoint of the old trainer, or does not fit the model.
    """
    content = _load(url)
    model = content.get("model", content.get("model_state_dict"))
    if not isinstance(model, Mapping):
        raise DataError(f"{url}: neither `model` nor `model_state_dict`. Expected a checkpoint of the old trainer.")
    tensors = demand_tensors(model, config, url)
    step = content.get("step", 0)
    notes = ["epoch and batch index are not taken over: they point into a shuffle that cannot be rebuilt"]
    if not isinstance(step, int) or step < 0:
        notes.append(f"the step is {step!r}: not used, the run starts at 0")
        step = 0
    optimizer = content.get("optimizer", content.get("optimizer_state_dict"))
    moments, reason = _moments(optimizer, [key for key in model if not key.endswith(_POSITION_BUFFER)], tensors)
    if moments is None:
        notes.append(f"moments are not taken over ({reason}): the run starts at step 0 with its warmup")
        step = 0
    notes.append("the old schedule is not taken over: the learning rate is a function of the step")
    return LegacyCheckpoint(
        tensors=tensors,
        text_pieces=tensors["text_embedding.weight"].shape[0] - 1,
        step=step,
        moments=moments,
        notes=tuple(notes),
    )


def _load(url: str) -> Mapping[str, Any]:
    # Random states and versions lie beside the tensors; these harmless types are all that the old trainer wrote.
    reconstruct: Any = np.empty(0).__reduce__()[0]
    allowed: list[Any] = [torch.torch_version.TorchVersion, np.ndarray, np.dtype, type(np.dtype("uint32")), reconstruct]
    allowed.append((reconstruct, "numpy.core.multiarray._reconstruct"))  # as older numpy spelt it
    with torch.serialization.safe_globals(allowed):
        content = read_torch_file(url, "checkpoint of the old trainer", "resume.source")
    if not isinstance(content, Mapping):
        raise DataError(f"{url}: holds a {type(content).__name__}, expected a dict.")
    return content


def _moments(
    optimizer: object, names: list[str], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, tuple[Tensor, Tensor]] | None, str]:
    if not isinstance(optimizer, Mapping) or not isinstance(optimizer.get("state"), Mapping):
        return None, "there are none"
    moments = {}
    for index, entry in optimizer["state"].items():
        if not isinstance(index, int) or index >= len(names):
            return None, f"parameter {index!r} of {len(names)}"
        name = names[index]
        pair = (entry.get("exp_avg"), entry.get("exp_avg_sq"))
        if any(not isinstance(part, Tensor) or part.shape != tensors[name].shape for part in pair):
            return None, f"those of {name} do not have its shape"
        moments[name] = pair
    return moments, ""
