"""Read checkpoints of the old trainer (`latest.pth`, `model_step*.pth`) without running code from them.

Weights, moments and the step are used. The position in the data is not: it is a batch index into a shuffle that cannot
be reproduced. The format is that of the public trainer `train_gpt_v2.py`: moments are keyed by the index of a parameter
in the order of the state dict without its two `pe` buffers.
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
    """The usable content of an old checkpoint."""

    tensors: Mapping[str, Tensor]
    """The full state dict under its published names."""
    text_pieces: int
    """Rows of its text tables - 1."""
    step: int
    moments: Mapping[str, tuple[Tensor, Tensor]] | None
    """(exp_avg, exp_avg_sq) by published name; None when they are missing or do not fit."""
    notes: tuple[str, ...]
    """A line for each part that is not used, with the reason."""


def read_legacy_checkpoint(url: str, config: GPTConfig) -> LegacyCheckpoint:
    """Read an old checkpoint.

    Args:
        url: Path or URL.
        config: The model's sizes.

    Raises:
        ConfigError: The file does not exist.
        DataError: It is not a checkpoint of the old trainer, or it does not fit the model.
    """
    content = _load(url)
    # The public trainer and its full-layer script use different keys.
    model = content.get("model", content.get("model_state_dict"))
    if not isinstance(model, Mapping):
        raise DataError(f"{url}: neither `model` nor `model_state_dict`. Expected a checkpoint of the old trainer.")
    tensors = demand_tensors(model, config, url)
    notes = ["epoch and batch index are not taken over: they point into a shuffle that cannot be rebuilt"]
    step = _step(content.get("step", 0), notes)
    optimizer = content.get("optimizer", content.get("optimizer_state_dict"))
    # Buffers have no moments and no index among the parameters.
    moments, reason = _moments(optimizer, [key for key in model if not key.endswith(_POSITION_BUFFER)], tensors)
    if moments is None:
        # Without moments the optimizer needs its warmup again, which the schedule puts at step 0.
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


def _step(value: object, notes: list[str]) -> int:
    """The recorded step; 0 and a note if it is no number of updates."""
    if isinstance(value, int) and value >= 0:
        return value
    notes.append(f"the step is {value!r}: not used, the run starts at 0")
    return 0


def _load(url: str) -> Mapping[str, Any]:
    # Besides tensors the old trainer wrote random states (numpy arrays) and versions. These types run no code.
    reconstruct: Any = np.empty(0).__reduce__()[0]
    allowed: list[Any] = [torch.torch_version.TorchVersion, np.ndarray, np.dtype, type(np.dtype("uint32")), reconstruct]
    allowed.append((reconstruct, "numpy.core.multiarray._reconstruct"))  # its name before numpy 2
    with torch.serialization.safe_globals(allowed):
        content = read_torch_file(url, "checkpoint of the old trainer", "resume.source")
    if not isinstance(content, Mapping):
        raise DataError(f"{url}: holds a {type(content).__name__}, expected a dict.")
    return content


def _moments(
    optimizer: object, names: list[str], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, tuple[Tensor, Tensor]] | None, str]:
    """The moments of an optimizer's state by the names of the parameters, or None and the reason."""
    if not isinstance(optimizer, Mapping) or not isinstance(optimizer.get("state"), Mapping):
        return None, "there are none"
    moments = {}
    for index, entry in optimizer["state"].items():
        if not isinstance(index, int) or index >= len(names):
            return None, f"parameter {index!r} of {len(names)}"
        name = names[index]
        pair = (entry.get("exp_avg"), entry.get("exp_avg_sq"))
        if not all(_has_shape(part, tensors[name]) for part in pair):
            return None, f"those of {name} do not have its shape"
        moments[name] = pair
    return moments, ""


def _has_shape(value: object, like: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == like.shape
