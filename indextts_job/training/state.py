"""The state of a training: weights, moments, scaler, step and history, and their way to and from checkpoints.

The step is the only position, and there are no random states: order, dropout and learning rate are functions of
(seed, step).
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from indextts_job.checkpoint.history import History
from indextts_job.checkpoint.manifest import CheckpointManifest, StoredObject, StoredTensor
from indextts_job.checkpoint.tensor_names import BASE, FIRST_MOMENT, SECOND_MOMENT, TEXT_TABLES, WEIGHTS, below
from indextts_job.model.adapter import LANGUAGE_ROWS
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.model.vocabulary import NEW_ROWS_SUFFIX
from indextts_job.training.adamw import AdamW
from indextts_job.training.recipe import OptimizerConfig
from indextts_job.training.schedule import RATE_FACTOR

_DECAYED = re.compile(r"gpt\.h\.\d+\.(attn|mlp)\..*\.weight")
"""Matrices of the transformer, the only parameters with weight decay (`OptimizerConfig.weight_decay`)."""


def owners_of(model: UnifiedVoice, world_size: int) -> list[int]:
    """The rank that updates each parameter and holds its moments, in the order of `model.parameters()`.

    Whole tensors are assigned, the largest first, each to the rank with the fewest values so far. With the released
    model's shape no rank of 8 has 2 % more than another.
    """
    sizes = [parameter.numel() for parameter in model.parameters()]
    taken, owners = [0] * world_size, [0] * len(sizes)
    # `sorted` is stable and `index` takes the first minimum, so every rank computes the same assignment.
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        owners[index] = taken.index(min(taken))
        taken[owners[index]] += sizes[index]
    return owners


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFactors:
    """Learning rates of rows that train by themselves, in multiples of the schedule's."""

    pieces: float = 1.0
    """New vocabulary rows."""
    languages: float = 1.0
    """Language rows beside an adapter."""


LIKE_THE_REST = RowFactors()


def build_optimizer(
    model: UnifiedVoice,
    config: OptimizerConfig,
    moments_of: Collection[str] | None = None,
    factors: RowFactors = LIKE_THE_REST,
    *,
    loaded: bool = False,
) -> torch.optim.AdamW:
    """AdamW over all trained parameters, decaying only where it belongs.

    Args:
        model: The model whose trained parameters are updated.
        config: Rates and constants of AdamW.
        moments_of: Names of the parameters that this rank updates; None = all.
        factors: Learning rates of rows that train by themselves.
        loaded: All moments are loaded before the first update: their memory is not set to zero, which takes as long as
            a copy of them.
    """
    optimizer = AdamW(
        _parameter_groups(model, config.weight_decay, {"new_rows": factors.pieces, "language_rows": factors.languages}),
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        # Fused kernels change weights and moments in place and allocate nothing; `reset_step` relies on that.
        fused=True,
    )
    # Moments are allocated now. The first update would allocate them group by group, and running out of memory in
    # between would leave one group updated and the other not.
    begun = torch.empty_like if loaded else torch.zeros_like
    for name, parameter in model.named_parameters():
        if moments_of is None or name in moments_of:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": begun(parameter),
                "exp_avg_sq": begun(parameter),
            }
    return optimizer


def _parameter_groups(model: UnifiedVoice, weight_decay: float, factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """Parameters by decay and learning rate; a group without parameters is left out."""
    groups: dict[str, list[nn.Parameter]] = {"decayed": [], "others": [], **{name: [] for name in factors}}
    for name, parameter in model.named_parameters():
        groups[_group_of(name)].append(parameter)
    settings = {
        "decayed": {"weight_decay": weight_decay, RATE_FACTOR: 1.0},
        "others": {"weight_decay": 0.0, RATE_FACTOR: 1.0},
        **{name: {"weight_decay": 0.0, RATE_FACTOR: factor} for name, factor in factors.items()},
    }
    return [{"params": members, **settings[key]} for key, members in groups.items() if members]


def _group_of(name: str) -> str:
    if name.endswith(NEW_ROWS_SUFFIX):
        return "new_rows"
    if name.endswith(LANGUAGE_ROWS):
        return "language_rows"
    return "decayed" if _DECAYED.fullmatch(name) else "others"


@dataclass(slots=True)
class Carried:
    """Tensors that never change: in memory until they have been stored once, then as references into the run."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    stored: Mapping[str, StoredTensor] = field(default_factory=dict)
    objects: Mapping[str, StoredObject] = field(default_factory=dict)


def stored_base(manifest: CheckpointManifest) -> Carried:
    """The base tensors of a checkpoint as references into the run's storage, so that they are not written again."""
    stored = {key: entry for key, entry in manifest.tensors.items() if key.startswith(BASE)}
    objects = {entry.object: manifest.objects[entry.object] for entry in stored.values()}
    return Carried(stored=stored, objects=objects)


@dataclass(slots=True, kw_only=True)
class TrainState:
    """Everything that training changes, and the unchanged base tensors."""

    model: UnifiedVoice
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    step: int = 0
    """Number of updates done; the next one has this number."""
    history: History = field(default_factory=History)
    carried: Carried = field(default_factory=Carried)
    own: Collection[str] | None = None
    """Names of the trained tensors that this process writes; None = all. Rank 0 writes the base tensors."""

    def tensor_groups(self, *, with_moments: bool = False) -> list[dict[str, Tensor]]:
        """The tensors that this process writes to a checkpoint, by full name; each group has objects of its own.

        Args:
            with_moments: Also before the first update, as every later checkpoint has them.
        """
        groups = [*self._trained_groups(with_moments=with_moments or self.step > 0), *self._carried_groups()]
        return [group for group in groups if group]

    def _trained_groups(self, *, with_moments: bool) -> list[dict[str, Tensor]]:
        """Weights, and after the first update both moments."""
        parameters = self.model.named_parameters()
        trained = {name: value for name, value in parameters if self.own is None or name in self.own}
        # Weights and moments are apart: an export or a validation reads the weights only.
        groups = [{WEIGHTS + name: value.detach() for name, value in trained.items()}]
        # Before the first update the moments are zeros, which every reader can make itself.
        if with_moments:
            groups += [
                self._moments(FIRST_MOMENT, "exp_avg", trained),
                self._moments(SECOND_MOMENT, "exp_avg_sq", trained),
            ]
        return groups

    def _moments(self, prefix: str, key: str, trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        return {prefix + name: self.optimizer.state[value][key] for name, value in trained.items()}

    def _carried_groups(self) -> list[dict[str, Tensor]]:
        """Base tensors that the run does not hold yet.

        Every start reads the frozen text tables, and beside an adapter all that a forward pass reads; only an export
        reads the others. So each has objects of its own.
        """
        needed = {*TEXT_TABLES, *(name for name, _ in self.model.named_buffers())}
        tables: dict[str, Tensor] = {}
        others: dict[str, Tensor] = {}
        for name, value in self.carried.tensors.items():
            (tables if name in needed else others)[BASE + name] = value
        return [tables, others]

    def scaler_values(self) -> dict[str, Any] | None:
        """Scale and growth counter of float16; None in other precisions."""
        return self.scaler.state_dict() if self.scaler.is_enabled() else None

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Put trained weights and frozen text tables into the model.

        Args:
            tensors: By full name, `model/…` and the frozen tables of `base/…`.
        """
        weights = below(WEIGHTS, tensors)
        frozen = {name: tensors[BASE + name] for name, _ in self.model.named_buffers()}
        self.model.load_state_dict(weights | frozen, strict=True)

    def load_moments(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Put moments into the optimizer, with their update count, which is the step."""
        if step == 0:
            return
        # The optimizer numbers parameters by group; checkpoints name them, so that neither groups nor their order
        # matter.
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
            if parameter in self.optimizer.state  # the moments of the others lie on other ranks
        }
        # torch copies each tensor to the device and type of its parameter.
        self.optimizer.load_state_dict(document)


def count_parameters(module: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in module.parameters())
