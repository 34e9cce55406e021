"""Causal attention over a packed sequence: inside each sample, nothing across samples.

Three ways, by what the device has. On every GPU from sm_80 on, in 16 bit, FlashAttention reads the packed rows as they
are. torch has no public function that reaches it with dropout (`varlen_attn` has none, and nested tensors cost three
more launches per layer), so its operator is called, whose schema a test compares. On other GPUs, and in float32, the
samples are padded for this one operation, and torch's public function takes its memory-efficient kernel. That kernel
could read packed rows too, but then its backward pass drops other weights than its forward pass did (measured with
torch 2.11 by `bench/first_ten_minutes.py`: the gradient is off by 9 % at dropout 0.1). On a CPU a loop over the samples
was faster than padding and than a dense block mask (`bench/packing.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from indextts_job.model.rows import take_rows

AttentionKernel = Literal["flash", "padded", "loop"]
"""See the top of this file."""

FLASH_CAPABILITY = (8, 0)
"""Ampere: the first compute capability that FlashAttention 2 supports."""
SIXTEEN_BIT = (torch.float16, torch.bfloat16)
LENGTH_STEP = 64
"""The longest length is rounded up to a multiple of this number of rows, which is half a block of the kernels."""


@dataclass(frozen=True, slots=True)
class SampleEdges:
    """The edges of the samples in a packed sequence."""

    cu_seqlens: Tensor
    """[samples + 1] int32 on the model's device: first row of each sample, then the number of rows."""
    lengths: Sequence[int]
    """Rows of each sample, on the host, so that the loop over samples needs no device synchronisation."""
    longest: int
    """At least the rows of the longest sample; the kernels size their grid by it."""


@dataclass(frozen=True, slots=True)
class Padding:
    """Where the packed rows lie when every sample is padded to the longest one."""

    source: Tensor
    """[samples * longest] packed row of each padded row; any row where there is none. Such rows stand behind all rows
    of their sample, so causal attention never reads them, and their gradient is zero."""
    packed: Tensor
    """The same, with the number of tokens where there is none."""
    padded: Tensor
    """[tokens] padded row of each packed row."""
    samples: int


@dataclass(frozen=True, slots=True)
class Attend:
    """How the blocks attend in one forward pass."""

    kernel: AttentionKernel
    edges: SampleEdges
    padding: Padding | None = None


def attend_with(x: Tensor, dtype: torch.dtype, edges: SampleEdges) -> Attend:
    """The fastest way that the device has.

    Args:
        x: [tokens, dim] input of the blocks.
        dtype: Type of queries, keys and values.
        edges: The edges of the samples.
    """
    kernel = attention_kernel(x.device, dtype)
    return Attend(kernel, edges, _padding(len(x), edges) if kernel == "padded" else None)


def attention_kernel(device: torch.device, dtype: torch.dtype) -> AttentionKernel:
    """The fastest kernel that the device has for a type."""
    # float64 is used by tests of exactness, and only the loop has it.
    if device.type != "cuda" or dtype == torch.float64:
        return "loop"
    return "flash" if dtype in SIXTEEN_BIT and _capability(device) >= FLASH_CAPABILITY else "padded"


def longest_bound(lengths: Sequence[int]) -> int:
    """The longest length, rounded up; 0 for no samples."""
    return -(-max(lengths, default=0) // LENGTH_STEP) * LENGTH_STEP


def packed_causal_attention(qkv: Tensor, attend: Attend, dropout: float) -> Tensor:
    """Causal attention within each sample, scaled by 1 / sqrt(head_dim).

    Args:
        qkv: [tokens, 3, heads, head_dim] queries, keys and values.
        attend: Edges of the samples, and a kernel that the device has for this type.
        dropout: Probability of dropping an attention weight.

    Returns:
        [tokens, heads, head_dim].
    """
    if attend.kernel == "flash":
        return _flash(qkv, attend.edges, dropout)
    if attend.padding:
        return _padded(qkv, attend.padding, dropout)
    return _per_sample(qkv, attend.edges, dropout)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _flash(qkv: Tensor, edges: SampleEdges, dropout: float) -> Tensor:
    cu_seqlens, longest = edges.cu_seqlens, edges.longest
    output: Tensor = torch.ops.aten._flash_attention_forward(
        *qkv.unbind(1),
        cu_seqlens,
        cu_seqlens,
        longest,
        longest,
        dropout,
        True,  # noqa: FBT003  # is_causal; the operator takes it by position only
        False,  # noqa: FBT003  # return_debug_mask
    )[0]
    return output


def _padding(tokens: int, edges: SampleEdges) -> Padding:
    starts, device = edges.cu_seqlens.long(), edges.cu_seqlens.device
    samples, longest = len(edges.lengths), edges.longest
    # By arithmetic on the device: a scatter would sort in deterministic mode, and arrays of the host need a copy.
    row = torch.arange(tokens, device=device)
    sample = torch.bucketize(row, starts[1:], right=True)
    slot = torch.arange(samples * longest, device=device)
    packed = starts[slot // longest] + slot % longest
    packed = torch.where(packed < starts[slot // longest + 1], packed, tokens)
    return Padding(packed.clamp(max=tokens - 1), packed, sample * longest + row - starts[sample], samples)


def _padded(qkv: Tensor, padding: Padding, dropout: float) -> Tensor:
    tokens, _, heads, head_dim = qkv.shape
    rows = take_rows(qkv.reshape(tokens, -1), padding.source, padding.padded)
    # [samples, longest, 3, heads, head_dim] -> 3 x [samples, heads, longest, head_dim]
    query, key, value = rows.view(padding.samples, -1, 3, heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    # Not left to torch: with a choice it may take another kernel in another release, or on another card.
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
    rows = mixed.transpose(1, 2).reshape(-1, heads * head_dim)
    return take_rows(rows, padding.padded, padding.packed).view(tokens, heads, head_dim)


def _per_sample(qkv: Tensor, edges: SampleEdges, dropout: float) -> Tensor:
    outputs = []
    for sample in torch.split(qkv, list(edges.lengths)):
        # [length, 3, heads, head_dim] -> 3 x [1, heads, length, head_dim]
        query, key, value = sample.permute(1, 2, 0, 3)[:, None].unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        outputs.append(mixed[0].transpose(0, 1))
    return torch.cat(outputs)
