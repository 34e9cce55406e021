"""The conditioning encoders of gpt.pth: a conformer over w2v-BERT's hidden states, and a perceiver resampler.

Architectures: Gulati et al., "Conformer", 2020, with one feed-forward layer behind the convolution, in the form of
wenet; Jaegle et al., "Perceiver", 2021, with the latents among the keys. Module names are those of the released file;
`model/config.py` lists their shapes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from indextts_job.model.config import (
    CONFORMER_INPUT_WIDTH,
    DEPTHWISE_KERNEL,
    RELATIVE_POSITIONS,
    RESAMPLER_HEAD_WIDTH,
    RESAMPLER_LAYERS,
    ConformerConfig,
)


class Conformer(nn.Module):
    """Hidden states of one clip to half as many rows.

    A batch of clips of different lengths gives other results than each clip alone: a convolution's bias fills masked
    rows, and the next convolution reads them. So there is no mask here, and callers give clips of equal length.

    Args:
        config: Its sizes.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.embed = _Subsampling(config.output_size)
        self.encoders = nn.ModuleList(_Layer(config) for _ in range(config.num_blocks))
        self.after_norm = nn.LayerNorm(config.output_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[clips, frames, 1024] -> [clips, (frames - 1) // 2, output size]."""
        rows, positions = self.embed(hidden)
        for layer in self.encoders:
            rows = layer(rows, positions)
        output: Tensor = self.after_norm(rows)
        return output


class _Subsampling(nn.Module):
    """A convolution of stride 2 over time and features, and a table of positions."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, size, 3, 2))
        self.out = nn.Sequential(nn.Linear(size * ((CONFORMER_INPUT_WIDTH - 1) // 2), size))
        self.pos_enc = nn.Module()
        self.pos_enc.register_buffer("pe", torch.zeros(1, RELATIVE_POSITIONS, size))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [clips, rows, size], scaled, and their positions [1, rows, size]."""
        maps = functional.relu(self.conv(hidden[:, None]))  # [clips, size, rows, features]
        rows = self.out(maps.transpose(1, 2).flatten(2))
        positions: Tensor = self.pos_enc.pe  # type: ignore[assignment]
        return rows * math.sqrt(rows.shape[-1]), positions[:, : rows.shape[1]]


class _Layer(nn.Module):
    """Attention, convolution and feed-forward, each with a norm in front and added to its input."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        size = config.output_size
        self.self_attn = _RelativeAttention(size, config.attention_heads)
        self.conv_module = _Convolution(size)
        self.feed_forward = _FeedForward(size, config.linear_units)
        self.norm_mha, self.norm_conv, self.norm_ff, self.norm_final = (nn.LayerNorm(size) for _ in range(4))

    def forward(self, rows: Tensor, positions: Tensor) -> Tensor:
        """[clips, rows, size] -> the same."""
        rows = rows + self.self_attn(self.norm_mha(rows), positions)
        rows = rows + self.conv_module(self.norm_conv(rows))
        output: Tensor = self.norm_final(rows + self.feed_forward(self.norm_ff(rows)))
        return output


class _RelativeAttention(nn.Module):
    """Attention with the two biases of Dai et al., "Transformer-XL", 2019, section 3.3.

    The published encoder adds the terms of the positions without shifting them, so position j is that of key j.
    """

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.linear_q, self.linear_k, self.linear_v, self.linear_out = (nn.Linear(size, size) for _ in range(4))
        self.linear_pos = nn.Linear(size, size, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, size // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, size // heads))
        self._heads = heads

    def forward(self, rows: Tensor, positions: Tensor) -> Tensor:
        """[clips, rows, size] -> the same."""
        queries, keys, values, places = (
            self._by_head(part)
            for part in (self.linear_q(rows), self.linear_k(rows), self.linear_v(rows), self.linear_pos(positions))
        )
        content = (queries + self.pos_bias_u[:, None]) @ keys.transpose(2, 3)
        position = (queries + self.pos_bias_v[:, None]) @ places.transpose(2, 3)
        weights = ((content + position) / math.sqrt(queries.shape[-1])).softmax(dim=-1)
        output: Tensor = self.linear_out((weights @ values).transpose(1, 2).flatten(2))
        return output

    def _by_head(self, rows: Tensor) -> Tensor:
        """[clips, rows, size] -> [clips, heads, rows, head size]."""
        return rows.view(*rows.shape[:2], self._heads, -1).transpose(1, 2)


class _Convolution(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.pointwise_conv1 = nn.Conv1d(size, 2 * size, 1)
        self.depthwise_conv = nn.Conv1d(size, size, DEPTHWISE_KERNEL, padding=DEPTHWISE_KERNEL // 2, groups=size)
        self.norm = nn.LayerNorm(size)
        self.pointwise_conv2 = nn.Conv1d(size, size, 1)

    def forward(self, rows: Tensor) -> Tensor:
        """[clips, rows, size] -> the same."""
        gated = functional.glu(self.pointwise_conv1(rows.transpose(1, 2)), dim=1)
        normed = self.norm(self.depthwise_conv(gated).transpose(1, 2))
        output: Tensor = self.pointwise_conv2(functional.silu(normed).transpose(1, 2)).transpose(1, 2)
        return output


class _FeedForward(nn.Module):
    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.w_1, self.w_2 = nn.Linear(size, inner), nn.Linear(inner, size)

    def forward(self, rows: Tensor) -> Tensor:
        """[clips, rows, size] -> the same."""
        output: Tensor = self.w_2(functional.silu(self.w_1(rows)))
        return output


class Perceiver(nn.Module):
    """Rows of any number to a fixed number of latents.

    Args:
        config: Sizes of the conformer in front of it.
        latents: Number of latents.
        width: Width of a latent.
    """

    def __init__(self, config: ConformerConfig, latents: int, width: int) -> None:
        super().__init__()
        inner = int(width * config.perceiver_mult * 2 / 3)  # as `model/config.py` explains
        self.proj_context = nn.Linear(config.output_size, width)
        self.latents = nn.Parameter(torch.zeros(latents, width))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    _CrossAttention(width, config.attention_heads),
                    nn.Sequential(nn.Linear(width, 2 * inner), _GatedUnit(), nn.Linear(inner, width)),
                ]
            )
            for _ in range(RESAMPLER_LAYERS)
        )
        self.norm = _RootMeanSquareNorm(width)

    def forward(self, rows: Tensor) -> Tensor:
        """[clips, rows, size] -> [clips, latents, width]."""
        context = self.proj_context(rows)
        latents = self.latents.expand(len(rows), -1, -1)
        for layer in self.layers:
            latents = latents + layer[0](latents, context)  # type: ignore[index]
            latents = latents + layer[1](latents)  # type: ignore[index]
        output: Tensor = self.norm(latents)
        return output


class _CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        inner = heads * RESAMPLER_HEAD_WIDTH
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        """Latents [clips, latents, width] ask the context [clips, rows, width] and each other."""
        keys_and_values = self.to_kv(torch.cat([latents, context], dim=1)).chunk(2, dim=2)
        queries, keys, values = (
            part.reshape(*part.shape[:2], -1, RESAMPLER_HEAD_WIDTH).transpose(1, 2)
            for part in (self.to_q(latents), *keys_and_values)
        )
        weights = (queries @ keys.transpose(2, 3) * RESAMPLER_HEAD_WIDTH**-0.5).softmax(dim=-1)
        output: Tensor = self.to_out((weights @ values).transpose(1, 2).flatten(2))
        return output


class _GatedUnit(nn.Module):
    """Half of the values, weighted by the GELU of the others (Shazeer, "GLU Variants Improve Transformer", 2020)."""

    def forward(self, rows: Tensor) -> Tensor:
        """[…, 2 · inner] -> […, inner]."""
        values, gate = rows.chunk(2, dim=-1)
        return functional.gelu(gate) * values


class _RootMeanSquareNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, rows: Tensor) -> Tensor:
        """[…, width] -> the same."""
        return functional.normalize(rows, dim=-1) * math.sqrt(rows.shape[-1]) * self.gamma
