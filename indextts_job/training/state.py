"""What a run needs to go on: weights, moments, scaler, step, history. Its tensors and values, to and from checkpoints.

Nothing here is a position besides the step, and there are no random states: order, dropout and learning rate are
functions of (seed, step).
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from indextts_job.checkpoint.history import History
from indextts_job.checkpoint.manifest import CheckpointManifest, StoredObject, StoredTensor
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.model.vocabulary import NEW_ROWS_SUFFIX, TEXT_TABLES
from indextts_job.training.recipe import OptimizerConfig
from indextts_job.training.schedule import RATE_FACTOR

WEIGHTS, FIRST_MOMENT, SECOND_MOMENT, BASE = "model/", "exp_avg/", "exp_avg_sq/", "base/"
_DECAYED = re.compile(r"gpt\.h\.\d+\.(attn|mlp)\..*\.weight")
"""Matrices of the transformer: see `OptimizerConfig.weight_decay`."""


def owners_of(model: UnifiedVoice, world_size: int) -> list[int]:
    """Which rank takes care of each parameter, in the order of `model.parameters()`.

    Whole tensors, the largest first to who has least: with the released model's shape no rank of 8 has 2 % more than
    another.
    """
    sizes = [parameter.numel() for parameter in model.parameters()]
    taken, owners = [0] * world_size, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        owners[index] = taken.index(min(taken))
        taken[owners[index]] += sizes[index]
    return owners


def build_optimizer(
    model: UnifiedVoice,
    config: OptimizerConfig,
    moments_of: Collection[str] | None = None,
    new_rows_factor: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW over all trained parameters, decaying only where it belongs.

    Args:
        model: Its trained parameters.
        config: Its numbers.
        moments_of: Names of the parameters that are updated here; None = of all.
        new_rows_factor: See `ScheduleConfig.new_rows_factor`; the group of the new rows carries it.
    """
    named = dict(model.named_parameters())
    new_rows = [p for name, p in named.items() if name.endswith(NEW_ROWS_SUFFIX)]
    decayed = [p for name, p in named.items() if _DECAYED.fullmatch(name)]
    others = [p for name, p in named.items() if not _DECAYED.fullmatch(name) and not name.endswith(NEW_ROWS_SUFFIX)]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, RATE_FACTOR: 1.0},
        {"params": others, "weight_decay": 0.0, RATE_FACTOR: 1.0},
        {"params": new_rows, "weight_decay": 0.0, RATE_FACTOR: new_rows_factor},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )
    # Now, not in the first update, where running out of memory would leave one of the groups updated.
    for name, parameter in model.named_parameters():
        if moments_of is not None and name not in moments_of:
            continue
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


@dataclass(slots=True)
class Carried:
    """What never changes: base tensors at hand until they are stored once, then only where they lie."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    stored: Mapping[str, StoredTensor] = field(default_factory=dict)
    objects: Mapping[str, StoredObject] = field(default_factory=dict)


def stored_base(manifest: CheckpointManifest) -> Carried:
    """The base tensors of a checkpoint as references into the run's storage: what is stored is not written again."""
    stored = {key: entry for key, entry in manifest.tensors.items() if key.startswith(BASE)}
    objects = {entry.object: manifest.objects[entry.object] for entry in stored.values()}
    return Carried(stored=stored, objects=objects)


@dataclass(slots=True, kw_only=True)
class TrainState:
    """Everything that training changes, and the base tensors that it carries along."""

    model: UnifiedVoice
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    step: int = 0
    """Updates that are done; the next one has this number."""
    history: History = field(default_factory=History)
    carried: Carried = field(default_factory=Carried)
    own: Collection[str] | None = None
    """Names of the trained tensors that this process writes; None = all. The base's are written by rank 0."""

    def tensor_groups(self) -> list[dict[str, Tensor]]:
        """What this process writes of a checkpoint, by full name; each group goes into objects of its own."""
        trained = {n: value for n, value in self.model.named_parameters() if self.own is None or n in self.own}
        groups = [{WEIGHTS + name: value.detach() for name, value in trained.items()}]
        if self.step:
            groups += [
                {prefix + name: self.optimizer.state[value][key] for name, value in trained.items()}
                for prefix, key in ((FIRST_MOMENT, "exp_avg"), (SECOND_MOMENT, "exp_avg_sq"))
            ]
        # Frozen text tables are read at every start, the other base tensors only by an export: objects of their own.
        frozen = {BASE + name: value for name, value in self.carried.tensors.items() if name in TEXT_TABLES}
        others = {BASE + name: value for name, value in self.carried.tensors.items() if name not in TEXT_TABLES}
        return [group for group in (*groups, frozen, others) if group]

    def scaler_values(self) -> dict[str, Any] | None:
        """Scale and growth counter of float16; None in other precisions."""
        return self.scaler.state_dict() if self.scaler.is_enabled() else None

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Put trained weights and frozen text tables into the model.

        Args:
            tensors: By full name, `model/…` and the frozen tables of `base/…`.
        """
        weights = {name.removeprefix(WEIGHTS): value for name, value in tensors.items() if name.startswith(WEIGHTS)}
        frozen = {name: tensors[BASE + name] for name, _ in self.model.named_buffers()}
        self.model.load_state_dict(weights | frozen, strict=True)

    def load_moments(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Put moments back, and the update count that belongs to them: it is the step (R19)."""
        if step == 0:
            return
        names = {id(value): name for name, value in self.model.named_parameters()}
        ordered = [p for group in self.optimizer.param_groups for p in group["params"]]
        document = self.optimizer.state_dict()
        document["state"] = {
            index: {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors[FIRST_MOMENT + names[id(parameter)]],
                "exp_avg_sq": tensors[SECOND_MOMENT + names[id(parameter)]],
            }
            for index, parameter in enumerate(ordered)
            if parameter in self.optimizer.state
        }
        self.optimizer.load_state_dict(document)


def count_parameters(module: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in module.parameters())
