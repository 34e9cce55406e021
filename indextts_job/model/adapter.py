"""Low-rank adapters (LoRA) of the blocks' projections, and what trains beside them.

With an adapter the base is constant: its tensors are buffers, not parameters, so that the optimizer cannot reach them
and no checkpoint repeats them. What trains are the factors A and B of each adapted projection, the rows of new pieces,
and the rows of the languages in use. (Hu et al. 2021, arXiv:2106.09685, section 4.1.)
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from indextts_job.bounds import Bounds
from indextts_job.hashing import integrity_digest

PROJECTIONS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""Matrices of a block that can be adapted; two are called `c_proj`, so the path counts."""
FACTORS = ("lora_A", "lora_B")
LANGUAGE_ROWS = "weight_rows"
"""`lang_embedding.weight_rows` holds the rows of the languages that train."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """A low-rank adapter in place of full fine-tuning."""

    rank: Annotated[int, Bounds(0, 1024)] = 0
    """Rank of the factors; 0 = no adapter, everything trains. 8 to 16 for one voice, 32 for a language."""
    alpha: Annotated[float, Bounds(0, 1e4)] = 64.0
    """The adapter counts alpha / rank times. 0 = the base path, bit for bit."""
    dropout: Annotated[float, Bounds(0, 1, below=True)] = 0.0
    """Dropout on the adapter's input."""
    targets: tuple[str, ...] = PROJECTIONS
    """Adapted matrices of each block."""
    last_blocks: Annotated[int, Bounds(0, 1024)] = 0
    """Only so many blocks, counted from the last one; 0 = all."""
    rows_factor: Annotated[float, Bounds(0, 1000)] = 10.0
    """Learning rate of language rows, in multiples of the schedule's."""

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / self.rank if self.rank else 0.0


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter of a model."""

    config: AdapterConfig
    language_rows: tuple[int, ...] = ()
    """Rows of the language table that train."""


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
        output = torch.addmm(self.bias, x, self.weight)
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
    adapted = [module for module in model.modules() if getattr(module, "adapted", False) is True]
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
