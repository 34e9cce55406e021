"""Causal attention over a packed sequence: inside each sample, nothing across samples.

torch has two variable-length kernels with dropout, and no public function that reaches both: `varlen_attn` has no
dropout, and nested tensors cost three more launches per layer. So they are called by their operators, whose schemas a
test compares over the supported releases of torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor

AttentionKernel = Literal["flash", "efficient", "loop"]
"""`flash`: FlashAttention 2. `efficient`: CUTLASS's memory-efficient attention. `loop`: one call per sample."""

FLASH_CAPABILITY = (8, 0)
"""Ampere: the first compute capability that FlashAttention 2 supports."""
SIXTEEN_BIT = (torch.float16, torch.bfloat16)
LENGTH_STEP = 64
"""The longest length is rounded up to a multiple of this number of rows, which is half a block of the kernels."""
_CAUSAL_FROM_TOP_LEFT = 1
"""`custom_mask_type` of the efficient kernel: a row attends to itself and to the rows before it."""


@dataclass(frozen=True, slots=True)
class SampleEdges:
    """The edges of the samples in a packed sequence."""

    cu_seqlens: Tensor
    """[samples + 1] int32 on the model's device: first row of each sample, then the number of rows."""
    lengths: Sequence[int]
    """Rows of each sample, on the host, so that the loop over samples needs no device synchronisation."""
    longest: int
    """At least the rows of the longest sample; the kernels size their grid by it."""


def longest_bound(lengths: Sequence[int]) -> int:
    """The longest length, rounded up; 0 for no samples."""
    return -(-max(lengths, default=0) // LENGTH_STEP) * LENGTH_STEP


def attention_kernel(device: torch.device, dtype: torch.dtype) -> AttentionKernel:
    """The fastest kernel that the device has for a type.

    Args:
        device: Device of queries, keys and values.
        dtype: Their type.
    """
    # float64 is used by tests of exactness, and only the loop has it.
    if device.type != "cuda" or dtype == torch.float64:
        return "loop"
    return "flash" if dtype in SIXTEEN_BIT and _capability(device) >= FLASH_CAPABILITY else "efficient"


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def packed_causal_attention(
    query: Tensor, key: Tensor, value: Tensor, edges: SampleEdges, kernel: AttentionKernel, dropout: float
) -> Tensor:
    """Causal attention within each sample, scaled by 1 / sqrt(head_dim).

    Args:
        query: [tokens, heads, head_dim].
        key: [tokens, heads, head_dim].
        value: [tokens, heads, head_dim].
        edges: The edges of the samples.
        kernel: A kernel that the device has for this type.
        dropout: Probability of dropping an attention weight.

    Returns:
        [tokens, heads, head_dim].
    """
    if kernel == "flash":
        return _flash(query, key, value, edges, dropout)
    if kernel == "efficient":
        return _efficient(query, key, value, edges, dropout)
    return _per_sample(query, key, value, edges, dropout)


def _flash(query: Tensor, key: Tensor, value: Tensor, edges: SampleEdges, dropout: float) -> Tensor:
    cu_seqlens, longest = edges.cu_seqlens, edges.longest
    output: Tensor = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        cu_seqlens,
        cu_seqlens,
        longest,
        longest,
        dropout,
        True,  # noqa: FBT003  # is_causal; the operator takes it by position only
        False,  # noqa: FBT003  # return_debug_mask
    )[0]
    return output


def _efficient(query: Tensor, key: Tensor, value: Tensor, edges: SampleEdges, dropout: float) -> Tensor:
    cu_seqlens, longest = edges.cu_seqlens, edges.longest
    output: Tensor = torch.ops.aten._efficient_attention_forward(
        query[None],
        key[None],
        value[None],
        None,  # bias
        cu_seqlens,
        cu_seqlens,
        longest,
        longest,
        dropout,
        _CAUSAL_FROM_TOP_LEFT,
        True,  # noqa: FBT003  # compute_log_sumexp, which backward needs
    )[0]
    return output[0]


def _per_sample(query: Tensor, key: Tensor, value: Tensor, edges: SampleEdges, dropout: float) -> Tensor:
    # On a CPU a loop over samples was faster than padding and than a dense block mask (`bench/packing.py`).
    lengths = list(edges.lengths)
    parts = zip(*(torch.split(rows, lengths) for rows in (query, key, value)), strict=True)
    return torch.cat(
        [
            # [length, heads, head_dim] -> [1, heads, length, head_dim] and back
            F.scaled_dot_product_attention(
                q.transpose(0, 1)[None],
                k.transpose(0, 1)[None],
                v.transpose(0, 1)[None],
                dropout_p=dropout,
                is_causal=True,
            )[0].transpose(0, 1)
            for q, k, v in parts
        ]
    )
