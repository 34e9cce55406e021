"""CAMPPlus: a filter bank to a speaker vector of 192 values, the condition of IndexTTS-2.5.

Architecture: Wang et al., "CAM++: A Fast and Efficient Network for Speaker Verification Using Context-Aware Masking",
2023. Module names are those of the released file. It pools over all frames, so a clip is never padded.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from indextts_job.prepare.encoders.filter_bank import BINS, filter_bank

SPEAKER_WIDTH = 192
HEAD_CHANNELS = 32
FIRST_CHANNELS, GROWTH, BOTTLENECK = 128, 32, 128
BLOCKS = ((12, 1), (24, 2), (16, 2))
"""Layers and dilation of each dense block."""
SEGMENT_FRAMES = 100
"""Frames over which the mask of a layer takes its local mean."""


class CamPPlus(nn.Module):
    """Samples to a speaker vector."""

    def __init__(self) -> None:
        super().__init__()
        self.head = _Head()
        self.xvector = nn.Sequential()
        self.xvector.add_module("tdnn", _FirstLayer(HEAD_CHANNELS * BINS // 8, FIRST_CHANNELS))
        channels = FIRST_CHANNELS
        for number, (layers, dilation) in enumerate(BLOCKS, start=1):
            self.xvector.add_module(f"block{number}", _DenseBlock(channels, layers, dilation))
            channels += layers * GROWTH
            self.xvector.add_module(f"transit{number}", _Transit(channels))
            channels //= 2
        self.xvector.add_module("out_nonlinear", _normed(channels))
        self.xvector.add_module("stats", _Statistics())
        self.xvector.add_module("dense", _Dense(2 * channels))

    def forward(self, samples: Tensor) -> Tensor:
        """[samples] at 16 kHz -> [192]."""
        energies = filter_bank(samples)
        energies = energies - energies.mean(dim=0, keepdim=True)
        vectors: Tensor = self.xvector(self.head(energies.T[None]))
        return vectors[0]


def _normed(channels: int) -> nn.Sequential:
    layers = nn.Sequential()
    layers.add_module("batchnorm", nn.BatchNorm1d(channels))
    layers.add_module("relu", nn.ReLU())
    return layers


class _Head(nn.Module):
    """Convolutions over bins and frames, which leave an eighth of the bins."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, HEAD_CHANNELS, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(HEAD_CHANNELS)
        self.layer1 = nn.Sequential(_Residual(2), _Residual(1))
        self.layer2 = nn.Sequential(_Residual(2), _Residual(1))
        self.conv2 = nn.Conv2d(HEAD_CHANNELS, HEAD_CHANNELS, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(HEAD_CHANNELS)

    def forward(self, energies: Tensor) -> Tensor:
        """[clips, bins, frames] -> [clips, channels, frames]."""
        maps = functional.relu(self.bn1(self.conv1(energies[:, None])))
        maps = functional.relu(self.bn2(self.conv2(self.layer2(self.layer1(maps)))))
        return maps.flatten(1, 2)


class _Residual(nn.Module):
    """Two convolutions, added to their input; the first one may halve the bins."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(HEAD_CHANNELS, HEAD_CHANNELS, 3, stride=(stride, 1), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(HEAD_CHANNELS)
        self.conv2 = nn.Conv2d(HEAD_CHANNELS, HEAD_CHANNELS, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(HEAD_CHANNELS)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.Conv2d(HEAD_CHANNELS, HEAD_CHANNELS, 1, stride=(stride, 1), bias=False))
            self.shortcut.append(nn.BatchNorm2d(HEAD_CHANNELS))

    def forward(self, maps: Tensor) -> Tensor:
        """[clips, channels, bins, frames] -> the same, or half the bins."""
        inside = functional.relu(self.bn1(self.conv1(maps)))
        return functional.relu(self.bn2(self.conv2(inside)) + self.shortcut(maps))


class _FirstLayer(nn.Module):
    """Halves the number of frames."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels, outputs, 5, stride=2, padding=2, bias=False)
        self.nonlinear = _normed(outputs)

    def forward(self, rows: Tensor) -> Tensor:
        """[clips, channels, frames] -> [clips, outputs, ⌈frames / 2⌉]."""
        output: Tensor = self.nonlinear(self.linear(rows))
        return output


class _DenseBlock(nn.ModuleDict):
    """Layers that read the outputs of all layers before them."""

    def __init__(self, channels: int, layers: int, dilation: int) -> None:
        super().__init__(
            {f"tdnnd{number + 1}": _DenseLayer(channels + number * GROWTH, dilation) for number in range(layers)}
        )

    def forward(self, rows: Tensor) -> Tensor:
        """[clips, channels, frames] -> [clips, channels + layers · GROWTH, frames]."""
        for layer in self.values():
            rows = torch.cat([rows, layer(rows)], dim=1)
        return rows


class _DenseLayer(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.nonlinear1 = _normed(channels)
        self.linear1 = nn.Conv1d(channels, BOTTLENECK, 1, bias=False)
        self.nonlinear2 = _normed(BOTTLENECK)
        self.cam_layer = _MaskedConvolution(dilation)

    def forward(self, rows: Tensor) -> Tensor:
        """[clips, channels, frames] -> [clips, GROWTH, frames]."""
        output: Tensor = self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(rows))))
        return output


class _MaskedConvolution(nn.Module):
    """A convolution whose outputs are weighted by a mask of the context: the mean of the clip, and of a segment."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.linear_local = nn.Conv1d(BOTTLENECK, GROWTH, 3, padding=dilation, dilation=dilation, bias=False)
        self.linear1 = nn.Conv1d(BOTTLENECK, BOTTLENECK // 2, 1)
        self.linear2 = nn.Conv1d(BOTTLENECK // 2, GROWTH, 1)

    def forward(self, rows: Tensor) -> Tensor:
        """[clips, BOTTLENECK, frames] -> [clips, GROWTH, frames]."""
        frames = rows.shape[2]
        # The last segment may be shorter; its mean is over the frames that it has.
        local = functional.avg_pool1d(rows, SEGMENT_FRAMES, SEGMENT_FRAMES, ceil_mode=True)
        context = rows.mean(dim=2, keepdim=True) + local.repeat_interleave(SEGMENT_FRAMES, dim=2)[:, :, :frames]
        mask = self.linear2(functional.relu(self.linear1(context))).sigmoid()
        output: Tensor = self.linear_local(rows) * mask
        return output


class _Transit(nn.Module):
    """Halves the number of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.nonlinear = _normed(channels)
        self.linear = nn.Conv1d(channels, channels // 2, 1, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        """[clips, channels, frames] -> [clips, channels / 2, frames]."""
        output: Tensor = self.linear(self.nonlinear(rows))
        return output


class _Statistics(nn.Module):
    """Mean and standard deviation over the frames."""

    def forward(self, rows: Tensor) -> Tensor:
        """[clips, channels, frames] -> [clips, 2 · channels]."""
        return torch.cat([rows.mean(dim=2), rows.std(dim=2)], dim=1)


class _Dense(nn.Module):
    """The last layer, whose norm has no weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels, SPEAKER_WIDTH, 1, bias=False)
        self.nonlinear = nn.Sequential()
        self.nonlinear.add_module("batchnorm", nn.BatchNorm1d(SPEAKER_WIDTH, affine=False))

    def forward(self, vectors: Tensor) -> Tensor:
        """[clips, channels] -> [clips, 192]."""
        output: Tensor = self.nonlinear(self.linear(vectors[:, :, None])[:, :, 0])
        return output
