"""The number of floating-point operations of training, independent of the hardware."""

import numpy as np
import numpy.typing as npt

from indextts_job.model.config import GPTConfig

FORWARD_AND_BACKWARD = 6
"""Operations per weight of a matrix and row: 2 forward (multiply, add), 4 backward."""


def training_flops(config: GPTConfig, text_rows: int, lengths: npt.ArrayLike) -> float:
    """Operations of forward and backward of the matrices and attention, without recomputation.

    Chowdhery et al. 2022, "PaLM", appendix B. Causal attention counts half, and each head counts only for the rows that
    it is applied to.

    Args:
        config: The model's sizes.
        text_rows: Rows of the text head: pieces + 1.
        lengths: [samples, 2] numbers of text tokens and of codes.
    """
    width, layers = config.model_dim, config.layers
    # Floating-point numbers: the squares of many samples exceed the integers of numpy.
    text, codes = np.asarray(lengths, np.float64).reshape(-1, 2).T
    rows = config.sample_tokens(text, codes)
    # A block has matrices of 3 + 1 (attention) and 4 + 4 (MLP) times width x width.
    blocks = 12.0 * width * width * layers * rows
    attention = width * layers * rows * rows  # scores and values: 2 x rows^2 / 2 each
    heads = width * ((text + 1) * text_rows + (codes + 1) * config.number_mel_codes)
    return float(FORWARD_AND_BACKWARD * (blocks + attention + heads).sum())
