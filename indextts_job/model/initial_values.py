"""Start values of a model: those of its base, and of what the base does not have."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from indextts_job.checkpoint.tensor_names import TEXT_TABLES
from indextts_job.model.adapter import FACTORS, LANGUAGE_ROWS, initial_factor
from indextts_job.model.base_checkpoint import LANGUAGE_TABLE, BaseCheckpoint
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.model.vocabulary import NEW_ROWS_SUFFIX, NewRows, initial_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Start values that are not those of the base; whatever is not here starts afresh."""

    new_rows: Mapping[str, Tensor] = field(default_factory=dict)
    """New vocabulary rows that an earlier run has trained, by table; they come before fresh ones."""
    language_rows: Mapping[int, Tensor] = field(default_factory=dict)
    """Rows of the language table."""
    factors: Mapping[str, Tensor] = field(default_factory=dict)
    """Factors of the adapter, by name."""


NOTHING = Given()


def initialise(model: UnifiedVoice, base: BaseCheckpoint, how: NewRows, seed: int, given: Given = NOTHING) -> None:
    """Load a base checkpoint into a model and give everything else its start values.

    Args:
        model: A model whose vocabulary has at least the base's pieces.
        base: All other values come from here.
        how: Start values of new rows, see `initial_rows`.
        seed: Seed of the noise in the start values.
        given: Start values that are known.
    """
    own = model.state_dict().keys()
    tensors = {key: value for key, value in base.tensors.items() if key in own}
    if model.vocabulary.extended:
        tensors |= _new_rows(model, base, how, seed, given)
    if model.version.language_rows:
        tensors |= _language_rows(model, base, given)
    if model.adapter:
        tensors |= _factors(model, seed, given)
    model.load_state_dict(tensors, strict=True)


def _new_rows(model: UnifiedVoice, base: BaseCheckpoint, how: NewRows, seed: int, given: Given) -> dict[str, Tensor]:
    # On the CPU, so that a run starts with the same rows on every machine.
    generator = torch.Generator().manual_seed(seed)
    rows = {}
    for key in TEXT_TABLES:
        known = given.new_rows.get(key, base.tensors[key][:0])
        fresh = initial_rows(base.tensors[key], model.vocabulary.new_rows - len(known), how, generator)
        rows[key + NEW_ROWS_SUFFIX] = torch.cat([known.float(), fresh])
    return rows


def _language_rows(model: UnifiedVoice, base: BaseCheckpoint, given: Given) -> dict[str, Tensor]:
    """The language table with its start values; beside an adapter the table is constant, and the rows stand apart."""
    table = base.tensors[LANGUAGE_TABLE].clone()
    for row, value in given.language_rows.items():
        table[row] = value
    if model.adapter is None:
        return {LANGUAGE_TABLE: table}
    if not model.adapter.language_rows:
        return {}
    return {LANGUAGE_TABLE.replace("weight", LANGUAGE_ROWS): table[list(model.adapter.language_rows)].float()}


def _factors(model: UnifiedVoice, seed: int, given: Given) -> dict[str, Tensor]:
    shapes = {name: value.shape for name, value in model.named_parameters() if name.endswith(FACTORS)}
    factors = {name: initial_factor(name, shape, seed) for name, shape in shapes.items()}
    for name, value in given.factors.items():
        # Of a smaller rank: with B's further columns zero, A's further rows count for nothing at the start.
        factors[name][tuple(map(slice, value.shape))] = value
    return factors
