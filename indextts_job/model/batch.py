"""One micro-batch as plain arrays: samples end to end, no padding.

A packed sequence holds, for each sample, [34 conditioning | start text stop | start codes] rows. Text and code
targets of a sample never reach into the next one; `cu_seqlens` marks the edges for attention.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indextts_job.model.config import CONDITIONING_TOKENS, GPTConfig

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the model needs of one utterance pair."""

    index: int
    """Place in the dataset."""
    id: str
    """Name in the dataset manifest."""
    text_ids: npt.NDArray[np.integer]
    """[T] token ids without start and stop."""
    codes: npt.NDArray[np.integer]
    """[M] codes without start and stop."""
    condition: Floats
    """[32, dim] speaker latents."""
    emotion: Floats
    """[dim] emotion vector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """Samples of one micro-batch, packed. T and M are the text and code lengths of a sample."""

    sample_indices: Integers
    """[samples] dataset indices."""
    sample_ids: tuple[str, ...]
    """[samples] names, for messages."""
    condition: Floats
    """[samples, 32, dim]."""
    emotion: Floats
    """[samples, dim]."""
    text_inputs: Integers
    """[sum(T + 2)] start, text, stop."""
    text_positions: Integers
    """[sum(T + 2)], from 0 in each sample."""
    code_inputs: Integers
    """[sum(M + 1)] start, codes."""
    code_positions: Integers
    """[sum(M + 1)], from 0 in each sample."""
    source_rows: Integers
    """[tokens] row of concatenated (conditioning, text, codes) that each packed row takes."""
    text_rows: Integers
    """[sum(T + 1)] packed rows whose next text token is counted."""
    text_targets: Integers
    """[sum(T + 1)] text, stop."""
    code_rows: Integers
    """[sum(M + 1)] packed rows whose next code is counted."""
    code_targets: Integers
    """[sum(M + 1)] codes, stop."""
    cu_seqlens: npt.NDArray[np.int32]
    """[samples + 1] first packed row of each sample, then the number of rows."""

    @property
    def num_tokens(self) -> int:
        """Rows of the packed sequence."""
        return int(self.cu_seqlens[-1])

    @property
    def num_samples(self) -> int:
        """Samples in the packed sequence."""
        return len(self.sample_indices)


def collate(samples: Sequence[Sample], config: GPTConfig) -> PackedBatch:
    """Lay samples end to end.

    Args:
        samples: Their order is kept; none for a rank that has nothing to do in this turn.
        config: Token ids of starts and stops.
    """
    if not samples:
        return _nothing(config)
    text_sizes = np.array([len(sample.text_ids) + 2 for sample in samples])
    code_sizes = np.array([len(sample.codes) + 1 for sample in samples])
    sizes = CONDITIONING_TOKENS + text_sizes + code_sizes
    starts = np.concatenate([[0], np.cumsum(sizes)])
    text_starts = len(samples) * CONDITIONING_TOKENS + np.concatenate([[0], np.cumsum(text_sizes)])
    code_starts = text_starts[-1] + np.concatenate([[0], np.cumsum(code_sizes)])
    source_rows, text_rows, code_rows = [], [], []
    for i, (text_size, code_size) in enumerate(zip(text_sizes, code_sizes, strict=True)):
        conditioning = i * CONDITIONING_TOKENS + np.arange(CONDITIONING_TOKENS)
        source_rows += [
            conditioning,
            text_starts[i] + np.arange(text_size),
            code_starts[i] + np.arange(code_size),
        ]
        first_text = starts[i] + CONDITIONING_TOKENS
        text_rows.append(first_text + np.arange(text_size - 1))
        code_rows.append(first_text + text_size + np.arange(code_size))
    return PackedBatch(
        sample_indices=np.array([sample.index for sample in samples], dtype=np.int64),
        sample_ids=tuple(sample.id for sample in samples),
        condition=np.stack([sample.condition for sample in samples]),
        emotion=np.stack([sample.emotion for sample in samples]),
        text_inputs=_joined(
            [[config.start_text_token], sample.text_ids, [config.stop_text_token]] for sample in samples
        ),
        text_positions=np.concatenate([np.arange(size) for size in text_sizes]),
        code_inputs=_joined([[config.start_mel_token], sample.codes] for sample in samples),
        code_positions=np.concatenate([np.arange(size) for size in code_sizes]),
        source_rows=np.concatenate(source_rows),
        text_rows=np.concatenate(text_rows),
        text_targets=_joined([sample.text_ids, [config.stop_text_token]] for sample in samples),
        code_rows=np.concatenate(code_rows),
        code_targets=_joined([sample.codes, [config.stop_mel_token]] for sample in samples),
        cu_seqlens=starts.astype(np.int32),
    )


def _nothing(config: GPTConfig) -> PackedBatch:
    none = np.empty(0, dtype=np.int64)
    return PackedBatch(
        sample_indices=none,
        sample_ids=(),
        condition=np.empty((0, CONDITIONING_TOKENS - 2, config.model_dim), dtype=np.float32),
        emotion=np.empty((0, config.model_dim), dtype=np.float32),
        text_inputs=none,
        text_positions=none,
        code_inputs=none,
        code_positions=none,
        source_rows=none,
        text_rows=none,
        text_targets=none,
        code_rows=none,
        code_targets=none,
        cu_seqlens=np.zeros(1, dtype=np.int32),
    )


def _joined(pieces: Iterable[Sequence[npt.ArrayLike]]) -> Integers:
    return np.concatenate([np.asarray(part, dtype=np.int64) for piece in pieces for part in piece])
