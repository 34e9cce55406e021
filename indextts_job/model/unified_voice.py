"""The trained part of UnifiedVoice v2: embeddings, transformer, heads, and loss sums over a packed micro-batch.

Modules that never train (the conditioning encoders) are not built: the dataset stores their outputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from indextts_job.model.config import GPTConfig
from indextts_job.model.transformer import LAYER_NORM_EPSILON, SampleEdges, Transformer
from indextts_job.model.vocabulary import TextEmbedding, TextHead, Vocabulary

HEAD_CHUNK_ROWS = 2048
"""Number of rows whose logits are in memory at one time: 2048 x 24,001 in float32 are 188 MiB."""
HAS_FUSED_CROSS_ENTROPY = hasattr(F, "linear_cross_entropy")
"""Newer releases of torch have it."""


@dataclass(frozen=True, slots=True)
class LossSums:
    """Loss sums over the counted targets of one micro-batch.

    Sums and not means: only the step knows the counts of the global batch to divide by (I3).
    """

    text: Tensor
    """Scalar, nats."""
    mel: Tensor
    """Scalar, nats."""
    mel_correct: Tensor
    """Scalar, number of code targets that the arg-max hits."""


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """A packed micro-batch on the model's device. Fields and shapes are those of `PackedBatch`."""

    condition: Tensor
    emotion: Tensor
    text_inputs: Tensor
    text_positions: Tensor
    code_inputs: Tensor
    code_positions: Tensor
    source_rows: Tensor
    text_rows: Tensor
    text_targets: Tensor
    code_rows: Tensor
    code_targets: Tensor
    edges: SampleEdges


class PositionTable(nn.Module):
    """Learned position embeddings, under the published name `emb`."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(rows, width)

    def forward(self, positions: Tensor) -> Tensor:
        """[tokens] -> [tokens, dim]."""
        output: Tensor = self.emb(positions)
        return output


class UnifiedVoice(nn.Module):
    """The trained modules of IndexTTS2's GPT. Parameter names equal the base checkpoint's keys."""

    def __init__(self, config: GPTConfig, vocabulary: Vocabulary, dropout: float) -> None:
        super().__init__()
        width = config.model_dim
        self.vocabulary = vocabulary
        self.text_embedding = TextEmbedding(vocabulary, width)
        self.mel_embedding = nn.Embedding(config.number_mel_codes, width)
        self.text_pos_embedding = PositionTable(config.max_text_tokens + 2, width)
        self.mel_pos_embedding = PositionTable(config.max_mel_tokens + 3, width)
        self.speed_emb = nn.Embedding(2, width)
        self.gpt = Transformer(width, config.layers, config.heads, dropout)
        self.final_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.text_head = TextHead(vocabulary, width)
        self.mel_head = nn.Linear(width, config.number_mel_codes)

    def forward(self, batch: DeviceBatch) -> LossSums:
        """Loss sums of one packed micro-batch."""
        hidden = self.hidden_states(batch)
        text_sum, _ = head_loss(hidden[batch.text_rows], *self.text_head.tables(), batch.text_targets)
        mel_sum, mel_correct = head_loss(
            hidden[batch.code_rows], self.mel_head.weight, self.mel_head.bias, batch.code_targets
        )
        return LossSums(text_sum, mel_sum, mel_correct)

    def hidden_states(self, batch: DeviceBatch) -> Tensor:
        """Hidden states after both final norms, [tokens, dim]."""
        rows = torch.cat(
            [
                self._conditioning(batch.condition, batch.emotion),
                self.text_embedding(batch.text_inputs) + self.text_pos_embedding(batch.text_positions),
                self.mel_embedding(batch.code_inputs) + self.mel_pos_embedding(batch.code_positions),
            ]
        )
        # `source_rows` is a permutation: it puts the three segments of each sample side by side.
        output: Tensor = self.final_norm(self.gpt(rows[batch.source_rows], batch.edges))
        return output

    def _conditioning(self, condition: Tensor, emotion: Tensor) -> Tensor:
        """[samples, 32, dim] and [samples, dim] -> [samples * 34, dim], without positions."""
        samples, _, width = condition.shape
        # Speed row 1 comes before row 0 in the published forward pass.
        speed = self.speed_emb.weight.flip(0).expand(samples, 2, width)
        latents = condition + emotion[:, None]
        return torch.cat([latents.to(speed.dtype), speed], dim=1).reshape(-1, width)


def head_loss(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross entropy of a head and the number of right arg-maxes, with bounded memory for logits.

    Args:
        hidden: [rows, dim].
        weight: [classes, dim].
        bias: [classes].
        targets: [rows] class ids.

    Returns:
        Two scalars: the sum in nats with a gradient, the count without one.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        # Converted once for all chunks, where autocast would convert the weight for each of them.
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), bias.to(dtype)
    # torch's fused kernel is faster from about as many rows as columns on (`bench/heads.py`).
    if torch.is_grad_enabled() and HAS_FUSED_CROSS_ENTROPY and hidden.shape[0] >= hidden.shape[1]:
        return _fused_loss(hidden, weight, bias, targets)
    return _chunked_loss(hidden, weight, bias, targets)


def _fused_loss(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    loss = F.linear_cross_entropy(
        hidden, weight, targets, linear_bias=bias, reduction="sum", options=nn.LinearCrossEntropyOptions()
    )
    # The kernel gives no logits, so the arg-max needs a second pass over the head. Both together are cheaper than
    # recomputing logits in backward (`bench/heads.py`).
    with torch.no_grad():
        correct = sum(
            (_correct(F.linear(rows, weight, bias), wanted) for rows, wanted in _chunks(hidden, targets)),
            start=torch.zeros((), dtype=torch.long, device=hidden.device),
        )
    return loss, correct


def _chunked_loss(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    # With more than one chunk, backward computes the logits again instead of keeping those of all chunks.
    recompute = torch.is_grad_enabled() and hidden.shape[0] > HEAD_CHUNK_ROWS
    chunk = partial(_chunk_loss, weight=weight, bias=bias)
    sums = [
        checkpoint(chunk, rows, wanted, use_reentrant=False, preserve_rng_state=False)
        if recompute
        else chunk(rows, wanted)
        for rows, wanted in _chunks(hidden, targets)
    ]
    return torch.stack([loss for loss, _ in sums]).sum(), torch.stack([right for _, right in sums]).sum()


def _chunks(hidden: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(hidden, HEAD_CHUNK_ROWS), torch.split(targets, HEAD_CHUNK_ROWS), strict=True)


def _chunk_loss(hidden: Tensor, targets: Tensor, *, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    logits = F.linear(hidden, weight, bias)
    # Half precision is too coarse for a sum of exponentials; float64 is used by tests of exactness.
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, targets, reduction="sum"), _correct(logits.detach(), targets)


def _correct(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(dim=-1) == targets).sum()
