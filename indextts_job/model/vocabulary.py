"""Text tables of an extended vocabulary: frozen base rows, trained new rows (I7).

A text table has one row per tokenizer piece and one spare row at the end that no token id selects. When a tokenizer
has more pieces than the base checkpoint, the base rows are buffers and not parameters, so the optimizer cannot change
them: they get no gradient, no weight decay and no moments. Only the new rows are parameters. When the tokenizer is the
base's own, every row trains, as in the base model's recipe.

A SentencePiece model gets new pieces behind all others. A file of ranks gets them behind its ranks, in front of the
special tokens, which move: `new_rows_at` says where.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from indextts_job.checkpoint.values import VocabularyRecord
from indextts_job.model.adapter import Adapter
from indextts_job.model.config import GPTConfig
from indextts_job.model.head import HeadTables, head_tables
from indextts_job.model.memory import Sizes

NEW_ROW_STD = 0.02
"""Standard deviation of fresh embeddings in the published model, used by `new_rows: normal`."""
NOISE_RATIOS = {"spread": 1.0, "mean": 0.1}
"""Noise around the mean base row, in standard deviations of the base rows in each component.

With 1.0 new rows are spread like the base rows. With 0.1 the rows of the head start almost equal, get almost equal
gradients and learn slowly: after 120 steps of `bench/new_rows.py` the text loss is 0.8 nats higher."""

NewRows = Literal["spread", "mean", "normal"]

NEW_ROWS_SUFFIX = "_new"
"""`text_head.weight_new` holds the trained rows of an extended `text_head.weight`."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Sizes of the text tables."""

    pieces: int
    """Pieces of the tokenizer in use."""
    base_pieces: int
    """Pieces of the tokenizer that the base checkpoint was trained with."""
    inserted_at: int | None = None
    """Id of the first new piece; None = behind all pieces of the base."""

    @classmethod
    def recorded(cls, record: VocabularyRecord) -> Self:
        """The sizes that a checkpoint records."""
        return cls(pieces=record.pieces, base_pieces=record.base_pieces, inserted_at=record.inserted_at)

    @property
    def new_rows_at(self) -> int:
        """Id of the first new piece."""
        return self.base_pieces if self.inserted_at is None else self.inserted_at

    @property
    def rows(self) -> int:
        """Rows of a text table, including the spare row."""
        return self.pieces + 1

    @property
    def extended(self) -> bool:
        """Whether base rows are frozen and only new rows train."""
        return self.pieces > self.base_pieces

    @property
    def new_rows(self) -> int:
        """Number of trained rows of an extended table."""
        return self.pieces - self.base_pieces

    def sizes(self, model: GPTConfig, adapter: Adapter | None = None) -> Sizes:
        """The sizes of a model with this vocabulary, for its memory."""
        return Sizes(
            model=model,
            pieces=self.pieces,
            base_pieces=self.base_pieces,
            adapted=adapter.parameters(model.model_dim, model.layers) if adapter else None,
            narrow_base=adapter is not None and adapter.config.base_dtype == "bfloat16",
        )


def join_rows(base: Tensor, new: Tensor, at: int) -> Tensor:
    """The full table in the order of the ids.

    Args:
        base: [base_pieces + 1, ...], the spare row last.
        new: [new_rows, ...].
        at: Id of the first new piece.

    Returns:
        [base_pieces + new_rows + 1, ...].
    """
    return torch.cat([base[:at], new, base[at:]])


def initial_rows(base: Tensor, count: int, how: NewRows, generator: torch.Generator) -> Tensor:
    """Start values of new rows.

    Args:
        base: [base_pieces + 1, ...]; the spare row is ignored, because it was never trained.
        count: Number of new rows.
        how: `spread`: around the mean base row, as far apart as the base rows are; `mean`: closely around it; `normal`:
            N(0, 0.02), biases 0.
        generator: CPU generator of the noise.

    Returns:
        [count, ...] float32.
    """
    used = base[:-1].float()
    noise = torch.randn((count, *base.shape[1:]), generator=generator)
    if how == "normal":
        return noise * NEW_ROW_STD if base.dim() > 1 else torch.zeros(count)
    return used.mean(dim=0) + NOISE_RATIOS[how] * used.std(dim=0) * noise


class TextEmbedding(nn.Module):
    """Embedding lookup in the text table of frozen and trained rows."""

    def __init__(self, vocabulary: Vocabulary, width: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        if vocabulary.extended:
            self.register_buffer("weight", torch.zeros(vocabulary.base_pieces + 1, width))
            self.weight_new = nn.Parameter(torch.empty(vocabulary.new_rows, width))
        else:
            self.weight = nn.Parameter(torch.empty(vocabulary.rows, width))

    def forward(self, ids: Tensor) -> Tensor:
        """[text tokens] ids -> [text tokens, dim]."""
        if not self.vocabulary.extended:
            return F.embedding(ids, self.weight)
        # Two lookups are cheaper than joining the tables: a micro-batch has few text tokens, a table many rows.
        first, count = self.vocabulary.new_rows_at, self.vocabulary.new_rows
        is_new = (ids >= first) & (ids < first + count)
        # The base rows behind the new ones have ids that are larger by `count` than their places in the base table.
        base = F.embedding(torch.where(ids < first, ids, (ids - count).clamp(min=0)), self.weight)
        new = F.embedding((ids - first).clamp(min=0, max=count - 1), self.weight_new)
        return torch.where(is_new[:, None], new, base)


class TextHead(nn.Module):
    """Weight and bias of the text logits, each of frozen and trained rows."""

    def __init__(self, vocabulary: Vocabulary, width: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        if vocabulary.extended:
            self.register_buffer("weight", torch.zeros(vocabulary.base_pieces + 1, width))
            self.register_buffer("bias", torch.zeros(vocabulary.base_pieces + 1))
            self.weight_new = nn.Parameter(torch.empty(vocabulary.new_rows, width))
            self.bias_new = nn.Parameter(torch.zeros(vocabulary.new_rows))
        else:
            self.weight = nn.Parameter(torch.empty(vocabulary.rows, width))
            self.bias = nn.Parameter(torch.zeros(vocabulary.rows))

    def tables(self) -> HeadTables:
        """The trained rows and the frozen ones."""
        if not self.vocabulary.extended:
            return head_tables(self.weight, self.bias)
        return HeadTables(self.weight_new, self.bias_new, self.weight, self.bias)

    def columns(self, ids: Tensor) -> Tensor:
        """The logits of token ids, counted as in `tables`.

        Joining the rows in the order of the ids would copy the largest table of the model for every micro-batch.
        """
        if not self.vocabulary.extended:
            return ids
        first, count = self.vocabulary.new_rows_at, self.vocabulary.new_rows
        # The base rows behind the new ones keep their ids: in front of them are as many others.
        in_front = torch.where(ids < first, ids + count, ids)
        return torch.where((ids >= first) & (ids < first + count), ids - first, in_front)
