"""torch's AdamW without an import of torch._dynamo, which takes a second of every start.

torch keeps its tracer out of the methods of optimizers by wrapping them in functions that import it when they are first
called. Nothing here traces an optimizer, so the methods stand for themselves. The computation is torch's own.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch

_Plain = torch.optim.AdamW


class AdamW(_Plain):
    """See `torch.optim.AdamW`."""

    add_param_group = inspect.unwrap(_Plain.add_param_group)
    zero_grad = inspect.unwrap(_Plain.zero_grad)
    state_dict = inspect.unwrap(_Plain.state_dict)
    load_state_dict = inspect.unwrap(_Plain.load_state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401
        """See `torch.optim.AdamW`."""
        # The wrapper also switches gradients off, as is done here.
        return inspect.unwrap(_Plain.step)(self, closure)
