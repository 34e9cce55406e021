"""Low-rank adapters (LoRA) of the blocks' projections, and what trains beside them.

With an adapter the base is constant: its tensors are buffers, not parameters, so that the optimizer cannot reach them
and no checkpoint repeats them. What trains are the factors A and B of each adapted projection, the rows of new pieces,
and the rows of the languages in use. (Hu et al. 2021, arXiv:2106.09685, section 4.1.)
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from indextts_job.checkpoint.tensor_names import FIRST_FACTOR
from indextts_job.checkpoint.values import AdapterRecord
from indextts_job.hashing import integrity_digest
from indextts_job.model.adapter_config import SIZES, AdapterConfig
from indextts_job.model.precision import computing_dtype

FACTORS = (FIRST_FACTOR, "lora_B")
LANGUAGE_ROWS = "weight_rows"
"""`lang_embedding.weight_rows` holds the rows of the languages that train."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter of a model."""

    config: AdapterConfig
    language_rows: tuple[int, ...] = ()
    """Rows of the language table that train."""

    @classmethod
    def recorded(cls, record: AdapterRecord) -> Self:
        """The adapter that a checkpoint records, without dropout."""
        config = AdapterConfig(
            rank=record.rank,
            alpha=record.alpha,
            targets=record.targets,
            last_blocks=record.last_blocks,
        )
        return cls(config, record.language_rows)

    def record(self) -> AdapterRecord:
        """What a checkpoint records."""
        config = self.config
        return AdapterRecord(
            rank=config.rank,
            alpha=config.alpha,
            targets=config.targets,
            last_blocks=config.last_blocks,
            language_rows=self.language_rows,
        )

    def parameters(self, width: int, layers: int) -> int:
        """Number of values of factors and rows.

        Args:
            width: Width of the model.
            layers: Number of its blocks.
        """
        sizes = sum(sum(SIZES[target]) for target in self.config.targets) * width * self.config.rank
        return sizes * (min(layers, self.config.last_blocks) or layers) + len(self.language_rows) * width


class InOutLinear(nn.Module):
    """A linear layer whose weight is stored [in, out], as in the published blocks: y = x W + b."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_in, width_out))
        self.bias = nn.Parameter(torch.zeros(width_out))
        self.scale = self.dropout = 0.0
        self.adapted = False

    def adapt(self, config: AdapterConfig) -> None:
        """Add the factors, without values: A [rank, in] and B [out, rank]."""
        width_in, width_out = self.weight.shape
        self.lora_A = nn.Parameter(torch.empty(config.rank, width_in))
        self.lora_B = nn.Parameter(torch.empty(width_out, config.rank))
        self.scale, self.dropout, self.adapted = config.scale, config.dropout, True

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, in] -> [tokens, out]."""
        weight: Tensor = self.weight
        if weight.dtype == torch.bfloat16:  # held so: a parameter in float32 is left to autocast, which keeps its cast
            weight = weight.to(computing_dtype(x))
        output = torch.addmm(self.bias, x, weight)
        # Nothing is added where the adapter is off: x + 0 y would turn -0 into +0.
        if not self.adapted or not self.scale:
            return output
        low = F.dropout(x, self.dropout, self.training) @ self.lora_A.T
        return output + (low @ self.lora_B.T) * self.scale


class LanguageTable(nn.Module):
    """A language table of which some rows train; the others are constant."""

    def __init__(self, rows: int, width: int, trained: tuple[int, ...]) -> None:
        super().__init__()
        self.trained = trained
        self.adapted = True
        self.register_buffer("weight", torch.zeros(rows, width))
        if trained:
            self.weight_rows = nn.Parameter(torch.empty(len(trained), width))

    def forward(self, ids: Tensor) -> Tensor:
        """[text tokens] rows -> [text tokens, dim]."""
        assert isinstance(self.weight, Tensor)  # noqa: S101  # a buffer
        found = F.embedding(ids, self.weight)
        # A run trains a handful of languages.
        for place, row in enumerate(self.trained if self.adapted else ()):
            found = torch.where((ids == row)[:, None], self.weight_rows[place], found)
        return found


def freeze(model: nn.Module, kept: tuple[str, ...]) -> None:
    """Make constants of all parameters but factors, language rows, and those with one of these endings."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if name not in (*FACTORS, LANGUAGE_ROWS) and not name.endswith(kept):
                delattr(module, name)
                module.register_buffer(name, parameter.detach())


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside, the model is its base: factors and language rows count for nothing. New pieces have no base."""
    adapted = [
        module for module in model.modules() if isinstance(module, InOutLinear | LanguageTable) and module.adapted
    ]
    for module in adapted:
        module.adapted = False
    try:
        yield
    finally:
        for module in adapted:
            module.adapted = True


def initial_factor(name: str, shape: torch.Size, seed: int) -> Tensor:
    """Start values of a factor: of the run's seed and the tensor's name, whatever else the model has.

    Args:
        name: Name of the parameter; B starts with zeros, so that a fresh adapter changes nothing.
        shape: A is [rank, in].
        seed: The run's.
    """
    if name.endswith(FACTORS[1]):
        return torch.zeros(shape)
    key = int.from_bytes(integrity_digest(f"{seed} {name}".encode())[:8], "little") >> 1
    bound = 1 / math.sqrt(shape[1])  # Kaiming's uniform with a = sqrt(5), as LoRA's authors start it
    return torch.empty(shape).uniform_(-bound, bound, generator=torch.Generator().manual_seed(key))


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """A projection with its adapter, rounded once to the type of the weight.

    Args:
        weight: [in, out].
        a: [rank, in].
        b: [out, rank].
        scale: alpha / rank.
    """
    return (weight.double() + (b.double() @ a.double()).T * scale).to(weight.dtype)
