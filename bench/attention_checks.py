"""Attention kernels of a GPU against float64, and whether their backward pass drops what their forward pass dropped."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from unittest import mock

import torch
from torch import Tensor

from bench.workload import utterances
from indextts_job.model import attention as model_attention
from indextts_job.model.attention import AttentionKernel, SampleEdges, attend_with, packed_causal_attention
from indextts_job.model.batch import Sample, collate
from indextts_job.model.config import GPTConfig
from indextts_job.training.engine import to_device

Attention = Callable[..., Tensor]
"""Of queries, keys and values [tokens, 3, heads, head_dim], edges, and the dropout probability."""


def product(qkv: Tensor, edges: SampleEdges, dropout: float) -> Tensor:
    """The attention that training uses on this device."""
    return packed_causal_attention(qkv, attend_with(qkv, qkv.dtype, edges), dropout)


def forced(kernel: AttentionKernel) -> AbstractContextManager[object]:
    """Inside, the product takes this way on every card."""
    return mock.patch.object(model_attention, "attention_kernel", return_value=kernel)


def padded(qkv: Tensor, edges: SampleEdges, dropout: float) -> Tensor:
    """The product's way on cards below sm_80."""
    with forced("padded"):
        return product(qkv, edges, dropout)


def efficient_packed(qkv: Tensor, edges: SampleEdges, dropout: float) -> Tensor:
    """CUTLASS's memory-efficient attention on packed rows, which the product does not use: look at its `mask_error`."""
    starts, longest = edges.cu_seqlens, edges.longest
    query, key, value = (rows[None] for rows in qkv.unbind(1))
    output: Tensor = torch.ops.aten._efficient_attention_forward(
        query,
        key,
        value,
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


def by_definition(qkv: Tensor, edges: SampleEdges) -> Tensor:
    """Softmax of the masked scores, sample by sample."""
    outputs = []
    for q, k, v in (sample.unbind(1) for sample in torch.split(qkv, list(edges.lengths))):
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        later = torch.ones(len(q), len(q), dtype=torch.bool, device=q.device).triu(1)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), v))
    return torch.cat(outputs)


def inputs_of(samples: Sequence[Sample], dtype: torch.dtype, config: GPTConfig) -> tuple[SampleEdges, Tensor]:
    """Edges of these samples on the device; random queries, keys and values of their rows.

    Args:
        samples: The samples of a packed sequence.
        dtype: Type of the values.
        config: Width and heads.
    """
    batch = collate(samples, config)
    shape = (batch.num_tokens, 3, config.heads, config.model_dim // config.heads)
    values = torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True)
    return to_device(batch, torch.device("cuda")).edges, values


def compared(attention: Attention, dtype: torch.dtype, config: GPTConfig) -> float:
    """Largest relative error of output and gradients without dropout, each as a norm, against float64.

    Args:
        attention: The kernel.
        dtype: Type of the inputs.
        config: Width and heads.
    """
    edges, qkv = inputs_of(utterances(5, config), dtype, config)
    exact = qkv.detach().double().requires_grad_()
    output = attention(qkv, edges, 0.0)
    upstream = torch.randn_like(output)
    right = by_definition(exact, edges)
    (found_gradient,) = torch.autograd.grad(output, qkv, upstream)
    (right_gradient,) = torch.autograd.grad(right, exact, upstream.double())
    pairs = [(output, right), *zip(found_gradient.unbind(1), right_gradient.unbind(1), strict=True)]
    return max(relative(one, other) for one, other in pairs)


def mask_error(attention: Attention, dtype: torch.dtype, config: GPTConfig) -> tuple[float, float]:
    """Whether backward drops the weights that forward dropped, and whether dropout keeps the mean.

    For fixed weights attention is linear in the values, so <output, g> = <values, gradient of the values> holds only
    when both passes use the same mask.

    Returns:
        The relative difference of both products, and the mean of an output whose values are all ones (right: 1).
    """
    edges, qkv = inputs_of(utterances(5, config), dtype, config)
    output = attention(qkv, edges, 0.1)
    # Not random: the products would be sums around zero, whose relative error says nothing.
    upstream = output.detach().clone()
    (gradient,) = torch.autograd.grad(output, qkv, upstream)
    ahead = (upstream.double() * upstream.double()).sum()
    back = (qkv.detach()[:, 2].double() * gradient[:, 2].double()).sum()
    ones = qkv.detach().clone()
    ones[:, 2] = 1.0
    return float((back - ahead).abs() / ahead.abs()), float(attention(ones, edges, 0.1).double().mean())


def relative(found: Tensor, right: Tensor) -> float:
    """Norm of the error over the norm of the right value; not a number stays one."""
    return float((found.detach().double() - right.detach().double()).norm() / right.detach().double().norm())
