"""The settings of a low-rank adapter. Pure: needs no torch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from indextts_job.bounds import Bounds

PROJECTIONS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""Matrices of a block that can be adapted; two are called `c_proj`, so the path counts."""
SIZES = {"attn.c_attn": (1, 3), "attn.c_proj": (1, 1), "mlp.c_fc": (1, 4), "mlp.c_proj": (4, 1)}
"""Widths of their inputs and outputs, in multiples of the model's."""


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
    start: str = ""
    """Folder with an adapter of the library peft to start from, of this rank or a smaller one; empty = afresh."""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the device holds the base's matrices and text tables: bfloat16 takes half the memory, and the
    adapter learns beside the rounded base. An export adds it to the base's own values."""
    rows_factor: Annotated[float, Bounds(0, 1000)] = 10.0
    """Learning rate of language rows, in multiples of the schedule's."""

    def __post_init__(self) -> None:
        # In one order, so that it does not matter in which they are named.
        named = tuple(one for one in PROJECTIONS if one in self.targets)
        if len(named) == len(self.targets):
            object.__setattr__(self, "targets", named)

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / self.rank if self.rank else 0.0
