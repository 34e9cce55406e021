"""The encoders of the semantic codecs: w2v-BERT's hidden states to codes. RepCodec (2.0), EnhancedCodec (2.5).

The two differ in one convolution, which halves the rate in front of the encoder. Module names are those of the
released files. Architecture: Siuzdak, "Vocos", 2023 (backbone of ConvNeXt blocks); Kumar et al., "High-Fidelity Audio
Compression with Improved RVQGAN", 2023, section 3.2 (codes looked up in a small space, by direction).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from indextts_job.model.versions import Shape

LAYER_NORM_EPSILON = 1e-6
KERNEL = 7
DECODING = re.compile(r"decoder\..*|up\..*|quantizer\.quantizers\.\d+\.out_project\..*")
"""Keys of the released files that only turn codes back into hidden states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecSizes:
    """Sizes of a codec, as its tensors have them."""

    hidden: int
    """Width of the hidden states that it reads."""
    width: int
    inner: int
    layers: int
    codes: int
    code_width: int
    halves_rate: bool


def codec_sizes(shapes: Mapping[str, Shape]) -> CodecSizes:
    """The sizes of a codec from the shapes of its tensors.

    Raises:
        LookupError, ValueError: A tensor that tells a size is missing or has another number of dimensions.
    """
    width, hidden, _ = shapes["encoder.0.embed.weight"]
    inner, _ = shapes["encoder.0.convnext.0.pwconv1.weight"]
    codes, code_width = shapes["quantizer.quantizers.0.codebook.weight"]
    numbers = [int(match[1]) for key in shapes if (match := re.match(r"encoder\.0\.convnext\.(\d+)\.", key))]
    return CodecSizes(
        hidden=hidden,
        width=width,
        inner=inner,
        layers=max(numbers) + 1,
        codes=codes,
        code_width=code_width,
        halves_rate="down.weight" in shapes,
    )


class CodecEncoder(nn.Module):
    """Hidden states to codes.

    Args:
        sizes: Its sizes.
    """

    def __init__(self, sizes: CodecSizes) -> None:
        super().__init__()
        if sizes.halves_rate:
            self.down = nn.Conv1d(sizes.hidden, sizes.hidden, kernel_size=3, stride=2, padding=1)
        self.encoder = nn.Sequential(_Backbone(sizes), nn.Linear(sizes.width, sizes.hidden))
        self.quantizer = nn.Module()
        self.quantizer.quantizers = nn.ModuleList([_Quantizer(sizes)])
        self._halves = sizes.halves_rate

    def forward(self, hidden: Tensor) -> Tensor:
        """Codes.

        Args:
            hidden: [clips, frames, hidden] of clips of equal length.

        Returns:
            [clips, frames], or [clips, ⌈frames / 2⌉] with half the rate.
        """
        if self._halves:
            hidden = functional.gelu(self.down(hidden.transpose(1, 2))).transpose(1, 2)
        codes: Tensor = self.quantizer.quantizers[0](self.encoder(hidden))  # type: ignore[index,operator]
        return codes


class _Backbone(nn.Module):
    def __init__(self, sizes: CodecSizes) -> None:
        super().__init__()
        self.embed = nn.Conv1d(sizes.hidden, sizes.width, KERNEL, padding=KERNEL // 2)
        self.norm = nn.LayerNorm(sizes.width, eps=LAYER_NORM_EPSILON)
        self.convnext = nn.ModuleList(_Block(sizes.width, sizes.inner) for _ in range(sizes.layers))
        self.final_layer_norm = nn.LayerNorm(sizes.width, eps=LAYER_NORM_EPSILON)

    def forward(self, hidden: Tensor) -> Tensor:
        """[clips, frames, hidden] -> [clips, frames, width]."""
        rows = self.norm(_over_time(self.embed, hidden))
        for block in self.convnext:
            rows = block(rows)
        output: Tensor = self.final_layer_norm(rows)
        return output


class _Block(nn.Module):
    """A ConvNeXt block: a convolution of each channel over time, then two layers over the channels."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.pwconv1 = nn.Linear(width, inner)
        self.pwconv2 = nn.Linear(inner, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, rows: Tensor) -> Tensor:
        """[clips, frames, width] -> the same."""
        inside = functional.gelu(self.pwconv1(self.norm(_over_time(self.dwconv, rows))))
        output: Tensor = rows + self.gamma * self.pwconv2(inside)
        return output


class _Quantizer(nn.Module):
    def __init__(self, sizes: CodecSizes) -> None:
        super().__init__()
        self.in_project = _NormedPointwise(sizes.hidden, sizes.code_width)
        self.codebook = nn.Embedding(sizes.codes, sizes.code_width)

    def forward(self, rows: Tensor) -> Tensor:
        """The code whose direction is the nearest: [clips, frames, hidden] -> [clips, frames]."""
        directions = functional.normalize(self.in_project(rows).reshape(-1, self.codebook.embedding_dim))
        entries = functional.normalize(self.codebook.weight)
        # The square of the distance, and not the cosine alone: rounding then decides ties as in the published codec.
        distance = directions.square().sum(1, keepdim=True) - 2 * directions @ entries.T + entries.square().sum(1)
        return (-distance).max(dim=1)[1].view(rows.shape[:-1])


class _NormedPointwise(nn.Module):
    """A convolution of one frame with weight normalisation (Salimans and Kingma, 2016), under its published names."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1, 1))
        self.weight_v = nn.Parameter(torch.ones(outputs, inputs, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, rows: Tensor) -> Tensor:
        """[clips, frames, inputs] -> [clips, frames, outputs]."""
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=(1, 2), keepdim=True))
        return functional.linear(rows, weight[:, :, 0], self.bias)


def _over_time(convolution: nn.Module, rows: Tensor) -> Tensor:
    """A convolution over time of [clips, frames, channels]."""
    output: Tensor = convolution(rows.transpose(1, 2)).transpose(1, 2)
    return output
