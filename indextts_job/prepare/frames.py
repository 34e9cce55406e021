"""Lengths of everything between samples and codes. Pure."""

SAMPLE_RATE = 16_000
WINDOW, HOP = 400, 160
"""Samples of a frame of 25 ms, and between the beginnings of two: the Kaldi convention of the feature extractor."""
CONDITION_SAMPLES = 15 * SAMPLE_RATE
"""Inference shows condition, speaker and emotion encoders the first 15 s of a prompt."""


def frames_of(samples: int) -> int:
    """Frames of 10 ms that fit so many samples."""
    return max(0, 1 + (samples - WINDOW) // HOP)


def even(samples: int) -> int:
    """The number of samples to keep so that frames come in pairs.

    Two frames make one input of w2v-BERT. An odd last one would be paired with padding, which its neighbours then see.
    """
    return samples - HOP * (frames_of(samples) % 2)


def codes_of(samples: int, codes_per_second: int) -> int:
    """Codes of a clip of so many samples at 16 kHz: one for each input of w2v-BERT, or for two of them."""
    inputs = frames_of(samples) // 2
    return inputs if codes_per_second == 50 else (inputs + 1) // 2
