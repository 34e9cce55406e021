"""Cross entropy of a head, summed, in float32 whatever the type of its inputs, with the gradient made in forward.

The logits of all rows would be the largest tensor of a step: 16,000 rows and 60,510 classes take 3.6 GiB in float32. So
rows are taken in chunks. The gradient of a chunk needs its logits and nothing from the rest of the model, so it is
computed while they are there (Liger, Hsu et al. 2024, arXiv:2410.10989, section 3.2): no logits are kept, none are
computed again, and the arg-max reads the same logits.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from indextts_job.model.attention import SIXTEEN_BIT

CHUNK_ELEMENTS = 2**24
"""Logits that are in memory at one time, 64 MiB in float32. `bench/heads.py`: larger chunks are not faster."""
LEAST_CHUNK_ROWS = 256
"""Fewer rows would leave most of a GPU idle in the products."""
ALIGNED_CLASSES = 64
"""Tensor cores take 16-bit matrices whose rows are aligned; 8194, 12001, 24001 and 60510 classes are not."""


@dataclass(frozen=True, slots=True)
class HeadTables:
    """Weight and bias of a head. The logits of its trained rows come first, then those of its frozen rows."""

    weight: Tensor
    """[trained, dim]."""
    bias: Tensor
    """[trained]."""
    frozen_weight: Tensor | None = None
    """[frozen, dim]; None where every row trains."""
    frozen_bias: Tensor | None = None
    """[frozen]."""

    @property
    def classes(self) -> int:
        """Number of logits."""
        return len(self.weight) + (0 if self.frozen_weight is None else len(self.frozen_weight))


def head_tables(weight: Tensor, bias: Tensor) -> HeadTables:
    """The tables of a head whose rows all train, or, where they are no parameters, none of them."""
    if isinstance(weight, nn.Parameter):
        return HeadTables(weight, bias)
    return HeadTables(weight[:0], bias[:0], weight, bias)


def row_losses(hidden: Tensor, tables: HeadTables, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy of each row, [rows] in float32, and the number of right arg-maxes; without gradients.

    Args:
        hidden: [rows, dim].
        tables: The head's weights.
        columns: [rows] the right logit of each row, counted as in `tables`.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        table = _joined(tables, hidden.dtype)
        biases = _joined_bias(tables, len(table), _wide(hidden))
        losses = torch.empty(len(hidden), dtype=biases.dtype, device=hidden.device)
        correct = torch.zeros((), dtype=torch.long, device=hidden.device)
        for rows in _chunks(len(hidden), len(table)):
            logits = _product(hidden[rows], table.T).add_(biases)
            correct += (logits.argmax(1) == columns[rows]).sum()
            losses[rows] = -logits.log_softmax(1).gather(1, columns[rows, None])[:, 0]
        return losses, correct


def head_loss(hidden: Tensor, tables: HeadTables, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Summed cross entropy of a head, the number of right arg-maxes, and the cross entropy of each row.

    Args:
        hidden: [rows, dim], in the type that the products are computed in.
        tables: The head's weights, in the type of the parameters.
        columns: [rows] the right logit of each row, counted as in `tables`.

    Returns:
        Two scalars and [rows]: the sum in nats in float32, or float64 if the inputs are, with a gradient; the count and
        the rows without one.
    """
    # The table is cast here, once for all chunks; autocast would cast it for each of them.
    with torch.autocast(hidden.device.type, enabled=False):
        if not torch.is_grad_enabled():
            return _loss(hidden, tables, columns, None)
        found: tuple[Tensor, Tensor, Tensor] = _HeadLoss.apply(  # type: ignore[no-untyped-call]
            hidden, tables.weight, tables.bias, tables, columns
        )
        return found


class _HeadLoss(torch.autograd.Function):
    """`head_loss` with its gradient. The tables come twice: autograd only looks at arguments that are tensors."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        tables: HeadTables,
        columns: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradients = _Gradients.of(hidden, weight, bias)
        loss, correct, rows = _loss(hidden, tables, columns, gradients)
        ctx.save_for_backward(gradients.hidden, gradients.weight, gradients.bias)
        ctx.mark_non_differentiable(correct, rows)
        return loss, correct, rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_of_others: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        hidden, weight, bias = ctx.saved_tensors
        # In place: they have no other use, and the one of a large table is not worth a copy.
        return hidden.mul_(grad), weight.mul_(grad), bias.mul_(grad), None, None


@dataclass(frozen=True, slots=True)
class _Gradients:
    """Gradients of the sum, filled chunk by chunk."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, hidden: Tensor, weight: Tensor, bias: Tensor) -> "_Gradients":
        # Sums over chunks are kept in float32: in 16 bit each of them would be rounded.
        wide = _wide(hidden)
        return cls(torch.empty_like(hidden), torch.zeros_like(weight, dtype=wide), torch.zeros_like(bias, dtype=wide))

    def add(self, rows: slice, hidden: Tensor, table: Tensor, of_logits: Tensor) -> None:
        """Add the part of a chunk.

        Args:
            rows: The rows of the chunk.
            hidden: [rows, dim].
            table: [columns, dim].
            of_logits: [rows, columns].
        """
        torch.mm(of_logits, table, out=self.hidden[rows])
        trained = of_logits[:, : len(self.weight)]
        self.weight.add_(_product(trained.T, hidden))
        self.bias.add_(trained.sum(0, dtype=self.bias.dtype))


def _loss(
    hidden: Tensor, tables: HeadTables, columns: Tensor, gradients: _Gradients | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum, count and rows of all chunks; fills the gradients too, if they are wanted."""
    table = _joined(tables, hidden.dtype)
    biases = _joined_bias(tables, len(table), _wide(hidden))
    loss = torch.zeros((), dtype=biases.dtype, device=hidden.device)
    correct = torch.zeros((), dtype=torch.long, device=hidden.device)
    of_rows = [hidden.new_empty((0, 1), dtype=biases.dtype)]
    for rows in _chunks(len(hidden), len(table)):
        right = columns[rows, None]
        logits = _product(hidden[rows], table.T).add_(biases)
        correct += (logits.argmax(1, keepdim=True) == right).sum()
        log_probabilities = logits.log_softmax(1)
        found = log_probabilities.gather(1, right)
        loss -= found.sum()
        of_rows.append(found)
        if gradients:
            gradients.add(rows, hidden[rows], table, _logit_gradient(log_probabilities, found, right, hidden.dtype))
    return loss, correct, torch.cat(of_rows)[:, 0].neg_()


def _wide(hidden: Tensor) -> torch.dtype:
    """The type of logits and sums: float64 is used by tests of exactness."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    step = max(LEAST_CHUNK_ROWS, CHUNK_ELEMENTS // columns)
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


def _joined(tables: HeadTables, dtype: torch.dtype) -> Tensor:
    """The whole table [columns, dim] in `dtype`; in 16 bit with rows of zeros up to an aligned number."""
    missing = -tables.classes % ALIGNED_CLASSES if dtype in SIXTEEN_BIT else 0
    if tables.frozen_weight is None and not missing:
        return tables.weight.to(dtype)
    trained, classes = len(tables.weight), tables.classes
    table = tables.weight.new_empty(classes + missing, tables.weight.shape[1], dtype=dtype)
    table[:trained] = tables.weight
    if tables.frozen_weight is not None:
        table[trained:classes] = tables.frozen_weight
    table[classes:] = 0
    return table


def _joined_bias(tables: HeadTables, columns: int, dtype: torch.dtype) -> Tensor:
    """[columns]; minus infinity for columns that only align the table, so that their probability is 0."""
    trained, classes = len(tables.bias), tables.classes
    biases = tables.bias.new_full((columns,), -torch.inf, dtype=dtype)
    biases[:trained] = tables.bias
    if tables.frozen_bias is not None:
        biases[trained:classes] = tables.frozen_bias
    return biases


def _logit_gradient(log_probabilities: Tensor, found: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Softmax minus one at the right column, [rows, columns] in `dtype`.

    Args:
        log_probabilities: [rows, columns].
        found: [rows, 1] those at the right columns.
        right: [rows, 1] the right columns.
        dtype: Type of the products that the gradient goes into.
    """
    gradient = torch.empty_like(log_probabilities, dtype=dtype)
    torch.exp(log_probabilities, out=gradient)
    # The right column is computed before it is rounded: bfloat16 has no value between 0.996 and 1, so the gradient of
    # a row that is almost right would vanish.
    with _each_written_once():
        return gradient.scatter_(1, right, torch.expm1(found).to(dtype))


@contextlib.contextmanager
def _each_written_once() -> Iterator[None]:
    """Inside, `scatter_` may write in any order: to write in a fixed one, torch sorts, in 16 launches."""
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)


def _product(one: Tensor, other: Tensor) -> Tensor:
    """Matrix product, in float32 if the matrices are in 16 bit."""
    if one.dtype not in SIXTEEN_BIT:
        return torch.mm(one, other)
    if one.is_cuda:
        return torch.mm(one, other, out_dtype=torch.float32)
    # CPUs have no such product, and are not used in 16 bit where speed matters.
    return torch.mm(one.float(), other.float())
