"""The tensors that inference knows, from those that a run trains: rows joined, adapters merged into projections."""

from collections.abc import Mapping

from torch import Tensor

from indextts_job.checkpoint.values import AdapterRecord
from indextts_job.model.adapter import FACTORS, LANGUAGE_ROWS, merged
from indextts_job.model.vocabulary import NEW_ROWS_SUFFIX, Vocabulary, join_rows


def published(
    trained: Mapping[str, Tensor],
    carried: Mapping[str, Tensor],
    vocabulary: Vocabulary,
    adapter: AdapterRecord | None,
) -> dict[str, Tensor]:
    """Trained and constant tensors under the names of a base checkpoint.

    Args:
        trained: Trained tensors by parameter name.
        carried: Constant tensors by their name in the base checkpoint, in its type.
        vocabulary: Where new rows stand in the text tables.
        adapter: The adapter that was trained; None without one.
    """
    full = dict(carried)
    for name, value in trained.items():
        if name.endswith(FACTORS[0]):
            weight, other = name.removesuffix(FACTORS[0]) + "weight", name.removesuffix(FACTORS[0]) + FACTORS[1]
            assert adapter is not None  # noqa: S101  # a checkpoint with factors records their adapter
            full[weight] = merged(carried[weight], value, trained[other], adapter.alpha / adapter.rank)
        elif name.endswith(LANGUAGE_ROWS):
            table = name.removesuffix(LANGUAGE_ROWS) + "weight"
            assert adapter is not None  # noqa: S101  # as above
            full[table] = carried[table].clone()
            for row, new in zip(adapter.language_rows, value, strict=True):
                full[table][row] = new.to(full[table].dtype)
        elif name.endswith(NEW_ROWS_SUFFIX):
            table = name.removesuffix(NEW_ROWS_SUFFIX)
            full[table] = join_rows(carried[table], value.to(carried[table].dtype), vocabulary.new_rows_at)
        elif not name.endswith(FACTORS[1]):
            full[name] = value
    return full
