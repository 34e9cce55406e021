"""Log mel energies in Kaldi's form, as CAMPPlus reads them: 80 bins, 25 ms every 10 ms, no dither.

Formulas: Kaldi's `compute-fbank-feats` with its defaults (offset removed, pre-emphasis 0.97, Povey window, power
spectrum of 512 points, triangles on the mel scale from 20 Hz to half the rate).
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from indextts_job.prepare.frames import HOP, SAMPLE_RATE, WINDOW

BINS = 80
FFT = 512
LOWEST_HZ = 20.0
PRE_EMPHASIS = 0.97
POVEY_POWER = 0.85
SMALLEST = torch.finfo(torch.float32).eps
"""Energies are at least this before their logarithm is taken, in every precision."""


def filter_bank(samples: Tensor) -> Tensor:
    """Log mel energies.

    Args:
        samples: [samples] at 16 kHz, full scale 1.

    Returns:
        [frames, 80].
    """
    frames = samples.unfold(0, WINDOW, HOP)  # [frames, 400]
    frames = frames - frames.mean(dim=1, keepdim=True)
    # The first sample of a frame has no neighbour before it, so it is its own.
    before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    window, triangles = (table.to(samples) for table in _tables())
    windowed = (frames - PRE_EMPHASIS * before) * window
    power = torch.fft.rfft(windowed, n=FFT).abs().square()[:, : FFT // 2]  # Kaldi leaves the Nyquist bin out
    energies: Tensor = (power @ triangles).clamp_min(SMALLEST).log()
    return energies


@lru_cache(maxsize=1)
def _tables() -> tuple[Tensor, Tensor]:
    """The window [400], and the weight of every frequency in every bin [256, 80]."""
    place = torch.arange(WINDOW, dtype=torch.float64)
    window = (0.5 - 0.5 * torch.cos(2 * math.pi * place / (WINDOW - 1))) ** POVEY_POWER
    # float32, as inference has it: its rounding moves a bin that a frequency barely touches by 1e-4.
    mels = 1127.0 * torch.log(1.0 + torch.arange(FFT // 2) * (SAMPLE_RATE / FFT) / 700.0)[:, None]
    low, high = (1127.0 * math.log(1.0 + hertz / 700.0) for hertz in (LOWEST_HZ, SAMPLE_RATE / 2))
    step = (high - low) / (BINS + 1)
    left, centre, right = (low + (torch.arange(BINS) + place) * step for place in (0.0, 1.0, 2.0))
    rising, falling = (mels - left) / (centre - left), (right - mels) / (right - centre)
    triangles = torch.minimum(rising, falling).clamp_min(0.0)
    return window, triangles
