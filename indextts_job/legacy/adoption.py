"""An old checkpoint turned into the state of a run with the same vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from indextts_job.legacy.base_rows import judge
from indextts_job.legacy.checkpoint import LegacyCheckpoint
from indextts_job.model.base_checkpoint import BaseCheckpoint
from indextts_job.model.config import GPTConfig, trained_shapes
from indextts_job.model.vocabulary import NEW_ROWS_SUFFIX, TEXT_TABLES, Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """An old checkpoint in the form of a run's state."""

    weights: Mapping[str, Tensor]
    """Trained weights by parameter name."""
    moments: Mapping[str, tuple[Tensor, Tensor]] | None
    step: int
    base: BaseCheckpoint
    """What never trains: from the base checkpoint, with the old run's text rows where training has moved them."""
    notes: tuple[str, ...]
    trained_rows: tuple[str, ...]
    """Base rows that the old training moved although they were to be frozen, by table and number."""


def adopt(old: LegacyCheckpoint, base: BaseCheckpoint, vocabulary: Vocabulary, config: GPTConfig) -> Imported:
    """Turn an old checkpoint into the state of a run with the same vocabulary.

    Args:
        old: Its text tables have `vocabulary.rows` rows.
        base: The base checkpoint that the old run started from.
        vocabulary: Of the tokenizer in use.
        config: The model.
    """
    notes = list(old.notes)
    rows = slice(vocabulary.base_pieces, vocabulary.pieces)
    tables = TEXT_TABLES if vocabulary.extended else ()
    trained = trained_shapes(config, vocabulary.rows).keys() - set(tables)
    carried = {key: value for key, value in base.tensors.items() if key not in trained}
    tables_of_base = {key: base.tensors[key] for key in tables}
    rows_of_base = judge(old.tensors, tables_of_base, vocabulary.base_pieces) if tables else None
    if rows_of_base and rows_of_base.decayed and not rows_of_base.trained:
        notes.append(
            f"{rows_of_base.decayed} base rows were shrunk by {rows_of_base.shrunk_ratio:.3%} through weight decay "
            "alone: the base checkpoint's own are restored"
        )
    moved = rows_of_base is not None and bool(rows_of_base.trained)
    weights = {key: old.tensors[key] for key in trained}
    for key in tables:
        weights[key + NEW_ROWS_SUFFIX] = old.tensors[key][rows]
        if moved:
            spare = base.tensors[key][-1:]
            carried[key] = torch.cat([old.tensors[key][: vocabulary.base_pieces].to(spare.dtype), spare])
    moments = None
    if old.moments is not None:
        moments = {key: pair for key, pair in old.moments.items() if key not in tables}
        pulled = 0
        for key in tables:
            if key in old.moments:
                first, second = old.moments[key]
                pulled += int(first[: vocabulary.base_pieces].count_nonzero() > 0)
                moments[key + NEW_ROWS_SUFFIX] = (first[rows], second[rows])
        if pulled:
            notes.append("moments of the frozen base rows were not zero: dropped, they would have gone on pulling")
        missing = weights.keys() - moments.keys()
        if missing:
            notes.append(f"no moments for {', '.join(sorted(missing)[:3])}: all start afresh, at step 0")
            moments = None
    return Imported(
        weights=weights,
        moments=moments,
        step=old.step if moments is not None else 0,
        base=BaseCheckpoint({**base.tensors, **carried}, base.text_pieces),
        notes=tuple(notes),
        trained_rows=rows_of_base.trained if rows_of_base else (),
    )
