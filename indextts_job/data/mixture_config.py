"""Settings of a weighted mixture: its sources, and later changes of their weights."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated

from indextts_job.bounds import Bounds, plain
from indextts_job.errors import ConfigError

WEIGHT = Bounds(0, 1e6)
MILLIONTHS = 10**6
"""Weights are decimals for people, and whole millionths for the order: every machine computes the same shares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """One source of a mixture."""

    manifest: str
    """Paired manifest, or folder of a sharded dataset; path or URL."""
    language: str = ""
    """Language of records that do not say theirs; as behind `::` of a manifest."""
    weight: Annotated[float, WEIGHT] = 1.0
    """Share of the stream of samples, in any unit. 0 = none until `mixture_from_step` gives one."""
    name: str = ""
    """Name for the log; empty = the language, or the path where several have that language."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsConfig:
    """The weights of all sources from a step on."""

    step: Annotated[int, Bounds(1, 10**12)]
    """The first step that has them."""
    weights: tuple[float, ...]
    """One for each source, in their order. 0 = the source has no part."""


def millionths(weight: float | str, key: str) -> int:
    """A weight as a whole number, from its decimal digits: a product of floats would round by itself.

    Args:
        weight: The weight.
        key: Where it stands, for messages.

    Raises:
        ConfigError: It is out of bounds, or so small that nothing is left of it.
    """
    whole = round(Decimal(str(weight)) * MILLIONTHS)
    if float(weight) not in WEIGHT or (float(weight) and not whole):
        expected = f"0, or at least {1 / MILLIONTHS:f} and at most {WEIGHT.most:.0f}"
        raise ConfigError(f"{key} is {plain(float(weight))}, expected {expected}.")
    return whole
