"""Takes rows of a tensor, with a backward pass that is a lookup too.

The backward pass of `tensor[rows]` adds into rows that may be given twice. To give the same bits every time, torch
sorts them on a GPU, in a dozen launches. Here no row is taken twice, so the gradient of a row is looked up where the
row went to.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable


def take_rows(tensor: Tensor, rows: Tensor, taken_as: Tensor) -> Tensor:
    """`tensor[rows]`.

    Args:
        tensor: [n, dim].
        rows: [m] the rows to take. None twice, unless the gradient of the other copies is zero.
        taken_as: [n] for each row of `tensor`, its place in the result; m if it is not taken.

    Returns:
        [m, dim].
    """
    taken: Tensor = _TakeRows.apply(tensor, rows, taken_as)  # type: ignore[no-untyped-call]
    return taken


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: Tensor, taken_as: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(taken_as)
        # With as many rows as there are, or with copies of some, all are taken.
        ctx.some_are_not = len(rows) < len(tensor)
        return tensor.index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (taken_as,) = ctx.saved_tensors
        if ctx.some_are_not:
            grad = F.pad(grad, (0, 0, 0, 1))  # a row of zeros, for the rows that were not taken
        return grad.index_select(0, taken_as), None, None
