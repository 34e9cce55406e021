"""Attention kernels of a GPU against float64, and whether their backward pass drops what their forward pass dropped."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.workload import utterances
from indextts_job.model import transformer
from indextts_job.model.batch import Sample, collate
from indextts_job.model.config import GPTConfig
from indextts_job.model.transformer import SampleEdges
from indextts_job.training.engine import to_device

Attention = Callable[..., Tensor]
"""As `transformer.packed_causal_attention`: query, key, value, edges first, the dropout probability last."""


def product(query: Tensor, key: Tensor, value: Tensor, edges: SampleEdges, *further: object) -> Tensor:
    """The attention that training uses on this device."""
    return transformer.packed_causal_attention(query, key, value, edges, *further)  # type: ignore[arg-type]


def flash(query: Tensor, key: Tensor, value: Tensor, edges: SampleEdges, *further: object) -> Tensor:
    """FlashAttention 2 with cu_seqlens and dropout: 16 bit, from compute capability 8.0 on."""
    starts, longest, dropout = edges.cu_seqlens, max(edges.lengths), further[-1]
    output: Tensor = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        starts,
        starts,
        longest,
        longest,
        dropout,
        True,  # noqa: FBT003  # is_causal; the operator takes it by position only
        False,  # noqa: FBT003  # return_debug_mask
    )[0]
    return output


def efficient(query: Tensor, key: Tensor, value: Tensor, edges: SampleEdges, *further: object) -> Tensor:
    """CUTLASS's memory-efficient attention with cu_seqlens and dropout: every type, every supported card."""
    starts, longest, dropout = edges.cu_seqlens, max(edges.lengths), further[-1]
    output: Tensor = torch.ops.aten._efficient_attention_forward(
        query[None],
        key[None],
        value[None],
        None,  # bias
        starts,
        starts,
        longest,
        longest,
        dropout,
        1,  # causal, from the top left
        True,  # noqa: FBT003  # compute_log_sumexp, which backward needs
    )[0]
    return output[0]


def by_definition(query: Tensor, key: Tensor, value: Tensor, edges: SampleEdges) -> Tensor:
    """Softmax of the masked scores, sample by sample."""
    outputs = []
    for q, k, v in zip(*(torch.split(rows, list(edges.lengths)) for rows in (query, key, value)), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        later = torch.ones(len(q), len(q), dtype=torch.bool, device=q.device).triu(1)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), v))
    return torch.cat(outputs)


def inputs_of(samples: Sequence[Sample], dtype: torch.dtype, config: GPTConfig) -> tuple[SampleEdges, list[Tensor]]:
    """Edges of these samples on the device; random query, key and value of their rows.

    Args:
        samples: The samples of a packed sequence.
        dtype: Type of the values.
        config: Width and heads.
    """
    batch = collate(samples, config)
    shape = (batch.num_tokens, config.heads, config.model_dim // config.heads)
    values = [torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3)]
    return to_device(batch, torch.device("cuda")).edges, values


def compared(attention: Attention, dtype: torch.dtype, config: GPTConfig) -> float:
    """Largest relative error of output and gradients without dropout, each as a norm, against float64.

    Args:
        attention: The kernel.
        dtype: Type of the inputs.
        config: Width and heads.
    """
    edges, inputs = inputs_of(utterances(5, config), dtype, config)
    exact = [value.detach().double().requires_grad_() for value in inputs]
    output = attention(*inputs, edges, 0.0)
    upstream = torch.randn_like(output)
    found = (output, *torch.autograd.grad(output, inputs, upstream))
    right_output = by_definition(exact[0], exact[1], exact[2], edges)
    right = (right_output, *torch.autograd.grad(right_output, exact, upstream.double()))
    return max(relative(one, other) for one, other in zip(found, right, strict=True))


def mask_error(attention: Attention, dtype: torch.dtype, config: GPTConfig) -> tuple[float, float]:
    """Whether backward drops the weights that forward dropped, and whether dropout keeps the mean.

    For fixed weights attention is linear in the values, so <output, g> = <values, gradient of the values> holds only
    when both passes use the same mask.

    Returns:
        The relative difference of both products, and the mean of an output whose values are all ones (right: 1).
    """
    edges, (query, key, value) = inputs_of(utterances(5, config), dtype, config)
    output = attention(query, key, value, edges, 0.1)
    # Not random: the products would be sums around zero, whose relative error says nothing.
    upstream = output.detach().clone()
    (gradient,) = torch.autograd.grad(output, value, upstream)
    ahead = (upstream.double() * upstream.double()).sum()
    back = (value.detach().double() * gradient.double()).sum()
    ones = attention(query, key, torch.ones_like(value), edges, 0.1).detach()
    return float((back - ahead).abs() / ahead.abs()), float(ones.double().mean())


def relative(found: Tensor, right: Tensor) -> float:
    """Norm of the error over the norm of the right value; not a number stays one."""
    return float((found.detach().double() - right.detach().double()).norm() / right.detach().double().norm())
