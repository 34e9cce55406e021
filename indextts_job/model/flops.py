"""The number of floating-point operations of training, independent of the hardware."""

from collections.abc import Iterable

from indextts_job.model.config import GPTConfig

FORWARD_AND_BACKWARD = 6
"""Operations per weight of a matrix and row: 2 forward (multiply, add), 4 backward."""


def training_flops(config: GPTConfig, text_rows: int, lengths: Iterable[tuple[int, int]]) -> float:
    """Operations of forward and backward of the matrices and attention, without recomputation.

    Chowdhery et al. 2022, "PaLM", appendix B. Causal attention counts half, and each head counts only for the rows that
    it is applied to.

    Args:
        config: The model's sizes.
        text_rows: Rows of the text head: pieces + 1.
        lengths: Number of text tokens and number of codes of each sample.
    """
    width, layers = config.model_dim, config.layers
    operations = 0.0
    for text, codes in lengths:
        rows = config.sample_tokens(text, codes)
        # A block has matrices of 3 + 1 (attention) and 4 + 4 (MLP) times width x width.
        blocks = 12 * width * width * layers * rows
        attention = width * layers * rows * rows  # scores and values: 2 x rows^2 / 2 each
        heads = width * ((text + 1) * text_rows + (codes + 1) * config.number_mel_codes)
        operations += FORWARD_AND_BACKWARD * (blocks + attention + heads)
    return operations
