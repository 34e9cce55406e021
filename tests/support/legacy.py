"""Checkpoints as the old trainer wrote them."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indextts_job.demo.world import World

PIECES, BASE_PIECES = 217, 100
STEP = 9


def base_state(world: World) -> dict[str, Tensor]:
    return dict(torch.load(world.base_checkpoint, weights_only=True))


def old_checkpoint(world: World, *, moved: bool = False, decay_steps: int = 0, step: int = STEP) -> dict[str, Any]:
    """As the old trainer wrote it: the whole model, moments by index, a position that means nothing.

    Args:
        world: Its base checkpoint.
        moved: Whether the base rows were trained too.
        decay_steps: Steps of AdamW with its default decay that the base rows went through without a gradient.
        step: The position.
    """
    generator = torch.Generator().manual_seed(1)
    model = base_state(world)
    never = ("conditioning_encoder.", "perceiver_encoder.", "emo_", "emovec_layer.")
    trained = [key for key in model if not key.startswith(never)]
    for key in trained:
        if key.startswith(("text_embedding", "text_head")):
            fresh = torch.randn((PIECES + 1, *model[key].shape[1:]), generator=generator) * 0.02
            base = model[key][:BASE_PIECES]
            noise = 1e-4 * torch.randn(base.shape, generator=generator) if moved else 0.0
            fresh[:BASE_PIECES] = _decayed(base, decay_steps) + noise
            model[key] = fresh
        else:
            model[key] = model[key] + 0.01 * torch.randn(model[key].shape, generator=generator)
    order = [key for key in model if not key.endswith(".embed.pos_enc.pe")]
    state = {}
    for index, key in enumerate(order):
        if key in trained:
            first = torch.randn(model[key].shape, generator=generator) * 1e-4
            if key.startswith(("text_embedding", "text_head")):
                first[:BASE_PIECES] = 1e-3 if moved else 0
            state[index] = {"step": torch.tensor(float(step)), "exp_avg": first, "exp_avg_sq": first**2}
    return {
        "model": model,
        "optimizer": {"state": state, "param_groups": [{"lr": 1e-5, "params": list(range(len(order)))}]},
        "scheduler": {"last_epoch": step},
        "scaler": None,
        "epoch": 1,
        "step": step,
        "batch_idx": 23,
        "recent_checkpoints": ["a.pth"],
        "manifests": {"train": ["x.jsonl"]},
        "rng_state": {
            "torch_cpu": torch.get_rng_state(),
            "torch_cuda": None,
            "numpy": np.random.get_state(),  # what the old trainer saved
            "python": random.getstate(),
        },
        "batch_size": 4,
        "pytorch_version": torch.__version__,
    }


def _decayed(rows: Tensor, steps: int) -> Tensor:
    parameter = torch.nn.Parameter(rows.clone())
    parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW([parameter], lr=2e-5, weight_decay=0.01)
    for _ in range(steps):
        optimizer.step()
    return parameter.detach()


def saved(content: object, folder: Path, name: str = "latest.pth") -> Path:
    path = folder / name
    torch.save(content, path)
    return path
