"""How the tensors of a checkpoint are named: a prefix for what they are, then the name of the parameter. Pure."""

from collections.abc import Iterable, Mapping
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


_CONSTANT = ("gpt.", "text_", "mel_", "final_norm.", "speed_emb.", "lang_embedding.", "spk_emb_proj.")
"""Beginnings of the base tensors that a forward pass reads; an adapter leaves all of them constant."""
RESUMED_WITH_ADAPTER = (*RESUMED, *(BASE + name for name in _CONSTANT))
FIRST_FACTOR = "lora_A"
"""End of the name of an adapter's first factor."""


def resumed(names: Iterable[str]) -> tuple[str, ...]:
    """Beginnings of the names that a resume needs of a checkpoint.

    Args:
        names: All its tensors.
    """
    return RESUMED_WITH_ADAPTER if any(name.endswith(FIRST_FACTOR) for name in names) else RESUMED


def below(prefix: str, named: Mapping[str, T]) -> dict[str, T]:
    """What is named with a prefix, under the rest of its name."""
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
