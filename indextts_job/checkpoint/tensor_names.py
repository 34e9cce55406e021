"""How the tensors of a checkpoint are named: a prefix for what they are, then the name of the parameter. Pure."""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

WEIGHTS = "model/"
"""Trained weights."""
FIRST_MOMENT, SECOND_MOMENT = "exp_avg/", "exp_avg_sq/"
"""Moments of AdamW."""
BASE = "base/"
"""What never changes: tensors of the base checkpoint."""
TEXT_TABLES = ("text_embedding.weight", "text_head.weight", "text_head.bias")
"""Tables with one row per text piece, by their name in the base checkpoint."""
RESUMED = (WEIGHTS, FIRST_MOMENT, SECOND_MOMENT, *(BASE + name for name in TEXT_TABLES))
"""Beginnings of the names of all tensors that a resume needs. The other tensors of the base, a gigabyte or more, are
needed by an export alone."""


def below(prefix: str, named: Mapping[str, T]) -> dict[str, T]:
    """What is named with a prefix, under the rest of its name."""
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
