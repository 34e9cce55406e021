"""The type that products are computed in, which is not always that of the weights."""

import torch
from torch import Tensor


def computing_dtype(x: Tensor) -> torch.dtype:
    """The type of matrix products with `x`: that of autocast where it is on, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
