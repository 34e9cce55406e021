"""Floating-point operations that training a sample takes, whatever it is computed on."""

from collections.abc import Iterable

from indextts_job.model.config import GPTConfig

FORWARD_AND_BACKWARD = 6
"""Per weight of a matrix and row: a multiplication and an addition forward, twice as many backward."""


def training_flops(config: GPTConfig, text_rows: int, lengths: Iterable[tuple[int, int]]) -> float:
    """Operations of forward and backward, matrices and attention only, nothing computed twice.

    Chowdhery et al. 2022, "PaLM", appendix B, with causal attention counted half and each head only where it is used.

    Args:
        config: The model.
        text_rows: Rows of the text head: pieces + 1.
        lengths: Text and code tokens of each sample.
    """
    width, layers = config.model_dim, config.layers
    operations = 0.0
    for text, codes in lengths:
        rows = config.sample_tokens(text, codes)
        blocks = 12 * width * width * layers * rows
        attention = width * layers * rows * rows  # scores and values: 2 x rows^2 / 2 each
        heads = width * ((text + 1) * text_rows + (codes + 1) * config.number_mel_codes)
        operations += FORWARD_AND_BACKWARD * (blocks + attention + heads)
    return operations
