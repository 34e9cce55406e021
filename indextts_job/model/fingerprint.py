"""What identifies tensors: a hash of their content, and that of the encoders that a base checkpoint carries."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from indextts_job.model.config import GPTConfig, carried_shapes


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # As bytes: numpy has no bfloat16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def conditioning_fingerprint(tensors: Mapping[str, Tensor], config: GPTConfig) -> str:
    """What identifies the conditioning encoders of a base checkpoint.

    Args:
        tensors: Tensors of the checkpoint, those that train too.
        config: The model in the version of the checkpoint.
    """
    return fingerprint({name: tensors[name] for name in carried_shapes(config)})
