"""Convert an old checkpoint into the state of a run with the same vocabulary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from indextts_job.checkpoint.tensor_names import TEXT_TABLES
from indextts_job.legacy.base_rows import BaseRows, judge
from indextts_job.legacy.checkpoint import LegacyCheckpoint
from indextts_job.model.base_checkpoint import BaseCheckpoint
from indextts_job.model.config import GPTConfig, trained_shapes
from indextts_job.model.vocabulary import NEW_ROWS_SUFFIX, Vocabulary

Moments = Mapping[str, tuple[Tensor, Tensor]]
"""(exp_avg, exp_avg_sq) by parameter name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """An old checkpoint in the form of a run's state."""

    weights: Mapping[str, Tensor]
    """Trained weights by parameter name."""
    moments: Moments | None
    """None when they are missing or incomplete: all of them start at zero."""
    step: int
    base: BaseCheckpoint
    """The tensors that never train: the base checkpoint's, but the old run's text rows where it has trained them."""
    notes: tuple[str, ...]
    trained_rows: tuple[str, ...]
    """Base rows that the old training has changed although they were meant to be frozen, by table and number."""


def adopt(old: LegacyCheckpoint, base: BaseCheckpoint, vocabulary: Vocabulary, config: GPTConfig) -> Imported:
    """Convert an old checkpoint into the state of a run with the same vocabulary.

    Args:
        old: The old checkpoint; its text tables have `vocabulary.rows` rows.
        base: The base checkpoint that the old run started from.
        vocabulary: Sizes of the text tables.
        config: The model's sizes.
    """
    tables = TEXT_TABLES if vocabulary.extended else ()
    base_rows = _judge_base_rows(old, base, tables, vocabulary)
    trained = trained_shapes(config, vocabulary.rows).keys() - set(tables)
    weights = {key: old.tensors[key] for key in trained} | _new_rows(old.tensors, tables, vocabulary)
    # Rows that the old run has trained belong to its model. Decayed ones hold nothing new: the base's own are kept.
    text_tables = _with_old_base_rows(old, base, tables, vocabulary) if base_rows.trained else {}
    moments, moment_notes = _moments(old, weights, tables, vocabulary)
    return Imported(
        weights=weights,
        moments=moments,
        # Warmup has to be repeated without moments, and the step decides where the schedule stands.
        step=old.step if moments is not None else 0,
        base=BaseCheckpoint({**base.tensors, **text_tables}, base.text_pieces),
        notes=(*old.notes, *_decay_notes(base_rows), *moment_notes),
        trained_rows=base_rows.trained,
    )


def _judge_base_rows(
    old: LegacyCheckpoint, base: BaseCheckpoint, tables: Sequence[str], vocabulary: Vocabulary
) -> BaseRows:
    if not tables:
        return BaseRows(decayed=0, shrunk_ratio=0.0, trained=())
    return judge(old.tensors, {key: base.tensors[key] for key in tables}, vocabulary.base_pieces)


def _decay_notes(base_rows: BaseRows) -> list[str]:
    if not base_rows.decayed or base_rows.trained:
        return []
    return [
        f"{base_rows.decayed} base rows were shrunk by {base_rows.shrunk_ratio:.3%} through weight decay "
        "alone: the base checkpoint's own are restored"
    ]


def _new_rows(tensors: Mapping[str, Tensor], tables: Sequence[str], vocabulary: Vocabulary) -> dict[str, Tensor]:
    rows = slice(vocabulary.base_pieces, vocabulary.pieces)
    return {key + NEW_ROWS_SUFFIX: tensors[key][rows] for key in tables}


def _with_old_base_rows(
    old: LegacyCheckpoint, base: BaseCheckpoint, tables: Sequence[str], vocabulary: Vocabulary
) -> dict[str, Tensor]:
    """The base's text tables with the old run's rows, in the base's precision; the spare row stays."""
    joined = {}
    for key in tables:
        spare = base.tensors[key][-1:]
        joined[key] = torch.cat([old.tensors[key][: vocabulary.base_pieces].to(spare.dtype), spare])
    return joined


def _moments(
    old: LegacyCheckpoint, weights: Mapping[str, Tensor], tables: Sequence[str], vocabulary: Vocabulary
) -> tuple[Moments | None, list[str]]:
    """The moments of the trained parameters, and notes about those that are dropped."""
    if old.moments is None:
        return None, []
    of_tables = {key: old.moments[key] for key in tables if key in old.moments}
    notes = _notes_on_base_rows(of_tables, vocabulary)
    moments = {key: pair for key, pair in old.moments.items() if key not in of_tables}
    moments |= _of_new_rows(of_tables, vocabulary)
    missing = weights.keys() - moments.keys()
    if missing:
        # All parameters share one step, so moments of zero beside old ones would get a wrong bias correction.
        notes.append(
            f"no moments for {', '.join(sorted(missing)[:3])}: all moments start at zero, and the run at step 0"
        )
        return None, notes
    return moments, notes


def _notes_on_base_rows(of_tables: Moments, vocabulary: Vocabulary) -> list[str]:
    if not any(first[: vocabulary.base_pieces].count_nonzero() > 0 for first, _ in of_tables.values()):
        return []
    return ["moments of the frozen base rows were not zero: dropped, because they would move rows that must not change"]


def _of_new_rows(of_tables: Moments, vocabulary: Vocabulary) -> dict[str, tuple[Tensor, Tensor]]:
    """The moments of the rows behind those of the base, under the names of their own parameters."""
    rows = slice(vocabulary.base_pieces, vocabulary.pieces)
    return {key + NEW_ROWS_SUFFIX: (first[rows], second[rows]) for key, (first, second) in of_tables.items()}
