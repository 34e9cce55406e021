"""GPT-2 blocks over a packed sequence: causal attention inside each sample, nothing across samples.

Module and parameter names are those of the published checkpoint, so a state dict needs no renaming.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None  # type: ignore[assignment]

LAYER_NORM_EPSILON = 1e-5
"""GPT-2's `layer_norm_epsilon`, which the published model uses in all norms."""


@dataclass(frozen=True, slots=True)
class SampleEdges:
    """The edges of the samples in a packed sequence."""

    cu_seqlens: Tensor
    """[samples + 1] int32 on the model's device: first row of each sample, then the number of rows."""
    lengths: Sequence[int]
    """Rows of each sample, on the host, so that the loop over samples needs no device synchronisation."""


def packed_causal_attention(query: Tensor, key: Tensor, value: Tensor, edges: SampleEdges, dropout: float) -> Tensor:
    """Causal attention within each sample, scaled by 1 / sqrt(head_dim).

    Args:
        query: [tokens, heads, head_dim].
        key: [tokens, heads, head_dim].
        value: [tokens, heads, head_dim].
        edges: The edges of the samples.
        dropout: Probability of dropping an attention weight.

    Returns:
        [tokens, heads, head_dim].
    """
    # torch's variable-length kernel runs on CUDA in half precision only, and it has no dropout.
    has_kernel = varlen_attn is not None and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16)
    if has_kernel and not dropout:
        return _fused_attention(query, key, value, edges)
    return _attention_per_sample(query, key, value, edges, dropout)


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, edges: SampleEdges) -> Tensor:
    longest = max(edges.lengths)
    # With the window (-1, 0) a row attends to itself and to all rows before it in its own sample.
    output = varlen_attn(query, key, value, edges.cu_seqlens, edges.cu_seqlens, longest, longest, window_size=(-1, 0))
    assert isinstance(output, Tensor)  # noqa: S101  # only a call with return_aux gives a tuple
    return output


def _attention_per_sample(query: Tensor, key: Tensor, value: Tensor, edges: SampleEdges, dropout: float) -> Tensor:
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


class InOutLinear(nn.Module):
    """A linear layer whose weight is stored [in, out], as in the published blocks: y = x W + b."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_in, width_out))
        self.bias = nn.Parameter(torch.zeros(width_out))

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, in] -> [tokens, out]."""
        return torch.addmm(self.bias, x, self.weight)


class Attention(nn.Module):
    """Multi-head causal self-attention."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.c_attn = InOutLinear(width, 3 * width)
        self.c_proj = InOutLinear(width, width)

    def forward(self, x: Tensor, edges: SampleEdges) -> Tensor:
        """[tokens, dim] -> [tokens, dim]."""
        tokens, width = x.shape
        query, key, value = self.c_attn(x).view(tokens, 3, self.heads, width // self.heads).unbind(1)
        dropout = self.dropout if self.training else 0.0
        mixed = packed_causal_attention(query, key, value, edges, dropout)
        return F.dropout(self.c_proj(mixed.reshape(tokens, width)), self.dropout, self.training)


class MLP(nn.Module):
    """Two layers with the tanh approximation of GELU (`gelu_new`)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.c_fc = InOutLinear(width, 4 * width)
        self.c_proj = InOutLinear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, dim] -> [tokens, dim]."""
        hidden = F.gelu(self.c_fc(x), approximate="tanh")
        return F.dropout(self.c_proj(hidden), self.dropout, self.training)


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.attn = Attention(width, heads, dropout)
        self.ln_2 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.mlp = MLP(width, dropout)

    def forward(self, x: Tensor, edges: SampleEdges) -> Tensor:
        """[tokens, dim] -> [tokens, dim]."""
        x = x + self.attn(self.ln_1(x), edges)
        output: Tensor = x + self.mlp(self.ln_2(x))
        return output


class Transformer(nn.Module):
    """The blocks and the final norm. Its inputs are embeddings: it has no token table and no position table."""

    def __init__(self, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.recompute = False
        """Keep only the inputs of the blocks and compute the rest again in backward: a third more work, the same
        bits."""
        self.h = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)

    def forward(self, x: Tensor, edges: SampleEdges) -> Tensor:
        """[tokens, dim] -> [tokens, dim]."""
        x = F.dropout(x, self.dropout, self.training)
        for block in self.h:
            if self.recompute and self.training:
                x = checkpoint(block, x, edges, use_reentrant=False)
            else:
                x = block(x, edges)
        output: Tensor = self.ln_f(x)
        return output
