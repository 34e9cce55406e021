"""The base rows of an old checkpoint: untouched, only shrunk by weight decay, or trained.

The public trainer applies weight decay to every parameter. It masks the gradients of its frozen rows, but AdamW still
multiplies these rows by 1 - rate x decay at every step. Such rows have learned nothing, and the base's own values
replace them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_RATIO = 0.9
"""Smallest ratio of an element to the base's that counts as decay. By simulation, 20,000 steps at a rate of 2e-5 and a
decay of 0.01 leave 0.996."""
LEAST_COSINE = 0.9999
"""Smallest cosine between a row and the base's that counts as decay. Decay keeps the direction but for float32, which
rounds the change of each element to whole units of its last place; training turns the row."""


@dataclass(frozen=True, slots=True)
class BaseRows:
    """How the base rows of one or more tables differ from the base checkpoint."""

    decayed: int
    """Number of rows that only weight decay has changed."""
    shrunk_ratio: float
    """Mean share by which the decayed elements became smaller; 0 when there are none."""
    trained: tuple[str, ...]
    """The rows that training has changed: `text_head.weight, row 17`."""


def judge(old: Mapping[str, Tensor], base: Mapping[str, Tensor], pieces: int) -> BaseRows:
    """Compare the base rows of an old checkpoint with the base checkpoint.

    Args:
        old: Tables [rows, dim] or [rows] by name.
        base: The same tables of the base checkpoint, with at least `pieces` rows.
        pieces: Number of rows, from the first on, that were meant to be frozen.
    """
    decayed, trained, shrunk = torch.zeros(pieces, dtype=torch.bool), [], []
    for name, table in base.items():
        # A bias [rows] becomes a table with one column.
        now = old[name][:pieces].double().reshape(pieces, -1)
        before = table[:pieces].double().reshape(pieces, -1)
        changed = (now != before).any(dim=1)
        # Decay leaves 0 at 0, so any other value there comes from training.
        ratio = torch.where(before == 0, torch.where(now == 0, 1.0, torch.inf), now / before)
        within = ((ratio >= SMALLEST_RATIO) & (ratio <= 1)).all(dim=1)
        cosine = torch.nn.functional.cosine_similarity(now, before, dim=1)
        only_decay = changed & within & ((cosine >= LEAST_COSINE) | (before == 0).all(dim=1))
        decayed |= only_decay
        shrunk.append(1 - ratio[only_decay].flatten())
        trained += [f"{name}, row {int(row)}" for row in (changed & ~only_decay).nonzero()]
    every = torch.cat(shrunk)
    return BaseRows(int(decayed.sum()), float(every.mean()) if len(every) else 0.0, tuple(trained))
