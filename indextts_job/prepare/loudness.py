"""What the samples of a clip are like, and what of it is suspicious. Pure.

A warning changes nothing: inference neither trims nor filters, so preparation does not either.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from indextts_job.prepare.frames import SAMPLE_RATE
from indextts_job.prepare.records import Levels

FULL_SCALE = 0.999
FRAME_S = 0.02
"""Level is measured over frames of this length."""
SILENT_BELOW_LOUD = 0.01
"""A frame 40 dB below the loud ones is silent: relative, because quiet recordings are no silence."""
LOUD_PERCENTILE = 95
ZEROS_S = 0.01
"""Zeros in shorter runs are samples of a quiet wave."""
MOST_CLIPPED, MOST_SILENT, MOST_ZERO = 0.001, 0.6, 0.1
LONGEST_SILENCE_S = 1.0

Signal = npt.NDArray[np.floating]


def rms_of(samples: Signal) -> float:
    """Root mean square; 1 is that of a square wave at full scale."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if samples.size else 0.0


def levels_of(samples: Signal, rate: int) -> Levels:
    """The levels of a clip.

    Args:
        samples: [samples].
        rate: Their rate in Hz.
    """
    rms, size = rms_of(samples), max(1, round(rate * FRAME_S))
    silent = _silent_frames(samples, size)
    voiced = np.flatnonzero(~silent)
    first, last = (int(voiced[0]), int(voiced[-1])) if len(voiced) else (len(silent), -1)
    return Levels(
        peak=_rounded(float(np.abs(samples).max(initial=0.0))),
        rms_dbfs=_rounded(20 * float(np.log10(max(rms, 1e-10)))),
        clipped_ratio=_rounded(float(np.mean(np.abs(samples) >= FULL_SCALE))),
        silence_ratio=_rounded(float(np.mean(silent)) if len(silent) else 0.0),
        leading_silence_s=_rounded(first * size / rate),
        trailing_silence_s=_rounded((len(silent) - 1 - last) * size / rate),
        digital_silence_ratio=_rounded(_zeros(samples, max(1, round(rate * ZEROS_S)))),
    )


def warnings_of(levels: Levels, sample_rate: int) -> Iterator[str]:
    """What is suspicious about a clip, in words that are equal for equal findings."""
    if sample_rate < SAMPLE_RATE:
        yield f"sample rate below {SAMPLE_RATE} Hz"
    if levels.clipped_ratio > MOST_CLIPPED:
        yield f"over {MOST_CLIPPED:.1%} of the samples clipped"
    if max(levels.leading_silence_s, levels.trailing_silence_s) > LONGEST_SILENCE_S:
        yield f"over {LONGEST_SILENCE_S:g} s of silence at an end"
    if levels.silence_ratio > MOST_SILENT:
        yield f"over {MOST_SILENT:.0%} silence"
    if levels.digital_silence_ratio > MOST_ZERO:
        yield f"over {MOST_ZERO:.0%} digital silence"


def _silent_frames(samples: Signal, size: int) -> npt.NDArray[np.bool_]:
    """[frames] which frames are silent; the rest behind the last whole frame does not count."""
    whole = samples[: len(samples) // size * size].reshape(-1, size)
    levels = np.sqrt(np.mean(np.square(whole, dtype=np.float64), axis=1))
    loud = np.percentile(levels, LOUD_PERCENTILE) if len(levels) else 0.0
    return np.asarray(levels <= SILENT_BELOW_LOUD * loud)


def _zeros(samples: Signal, shortest: int) -> float:
    """Share of samples in runs of at least so many zeros."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], samples == 0, [0]]).astype(np.int8)))
    lengths = edges[1::2] - edges[::2]
    return float(lengths[lengths >= shortest].sum() / max(1, len(samples)))


def _rounded(value: float) -> float:
    # Six digits say everything that a threshold asks, and keep records short.
    return round(value, 6)
