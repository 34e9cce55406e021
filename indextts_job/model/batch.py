"""One micro-batch as plain arrays: samples end to end, no padding.

A packed sequence holds, for each sample, [conditioning | start text stop | start codes] rows; the version of the model
says how many rows of conditioning. The text and code targets of a row are always of the same sample; `cu_seqlens` gives
attention the edges of the samples.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from indextts_job.layout import offsets
from indextts_job.model.config import GPTConfig

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Allocate = Callable[[int], Bytes]
"""Gives so many bytes of memory."""

ARRAYS = (
    "condition",
    "emotion",
    "text_inputs",
    "text_positions",
    "text_languages",
    "code_inputs",
    "code_positions",
    "text_targets",
    "code_targets",
    "source_rows",
    "packed_rows",
    "target_rows",
    "target_of_row",
    "cu_seqlens",
)
"""The arrays that the model reads, in the order in which they lie in the buffer of a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The values of one utterance pair that the model reads."""

    index: int
    """Index in the dataset."""
    id: str
    """Name in the dataset manifest."""
    text_ids: npt.NDArray[np.integer]
    """[T] token ids without start and stop, and without those that the version drops."""
    codes: npt.NDArray[np.integer]
    """[M] codes without start and stop."""
    condition: Floats
    """[32, dim] speaker latents, or [192] a speaker vector, by the version."""
    emotion: Floats
    """[dim] emotion vector."""
    language_row: int = 0
    """Row of the language table; without effect in a version that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """Samples of one micro-batch, packed. T and M are the text and code lengths of a sample."""

    sample_indices: Integers
    """[samples] dataset indices."""
    sample_ids: tuple[str, ...]
    """[samples] names, for messages."""
    condition: Floats
    """[samples, 32, dim] or [samples, 192]."""
    emotion: Floats
    """[samples, dim]."""
    text_inputs: Integers
    """[sum(T + 2)] start, text, stop."""
    text_positions: Integers
    """[sum(T + 2)], from 0 in each sample."""
    text_languages: Integers
    """[sum(T + 2)] row of the language table; [0] in a version that has none."""
    code_inputs: Integers
    """[sum(M + 1)] start, codes."""
    code_positions: Integers
    """[sum(M + 1)], from 0 in each sample."""
    source_rows: Integers
    """[tokens] for each packed row, the row of concatenated (conditioning, text, codes) that stands there."""
    packed_rows: Integers
    """[tokens] the inverse of `source_rows`."""
    target_rows: Integers
    """[sum(T + 1) + sum(M + 1)] packed rows whose next token is counted: those of the texts, then those of the
    codes."""
    target_of_row: Integers
    """[tokens] for each packed row, its index in `target_rows`; the length of `target_rows` if it predicts nothing."""
    text_targets: Integers
    """[sum(T + 1)] text, stop."""
    code_targets: Integers
    """[sum(M + 1)] codes, stop."""
    cu_seqlens: npt.NDArray[np.int32]
    """[samples + 1] first packed row of each sample, then the number of rows."""
    buffer: Bytes
    """The memory of all arrays but `sample_indices`, one after the other, so that one copy brings them to a device."""

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays that the model reads."""
        return {name: getattr(self, name) for name in ARRAYS}

    @property
    def text_sizes(self) -> Integers:
        """[samples] text targets of each sample: one fewer than it has text rows."""
        return _sizes(self.text_positions) - 1

    @property
    def code_sizes(self) -> Integers:
        """[samples] code targets of each sample."""
        return _sizes(self.code_positions)

    @property
    def num_tokens(self) -> int:
        """Rows of the packed sequence."""
        return int(self.cu_seqlens[-1])

    @property
    def num_samples(self) -> int:
        """Samples in the packed sequence."""
        return len(self.sample_indices)


def _sizes(positions: Integers) -> Integers:
    """Rows of each sample, from positions that begin at 0 in each of them."""
    return np.diff(np.append(np.flatnonzero(positions == 0), len(positions)))


def pageable(size: int) -> Bytes:
    """Ordinary memory."""
    return np.empty(size, dtype=np.uint8)


def collate(samples: Sequence[Sample], config: GPTConfig, allocate: Allocate = pageable) -> PackedBatch:
    """Pack samples end to end.

    Args:
        samples: The samples in the order of the packed sequence. Empty on a rank without work in this micro-batch.
        config: The ids of the start and stop tokens.
        allocate: Gives the memory of the arrays.
    """
    arrays = _arrays(samples, config) if samples else _no_arrays(config)
    buffer, views = _in_one_buffer(arrays, allocate)
    return PackedBatch(
        sample_indices=np.array([sample.index for sample in samples], dtype=np.int64),
        sample_ids=tuple(sample.id for sample in samples),
        buffer=buffer,
        **views,
    )


def _in_one_buffer(
    arrays: Mapping[str, npt.NDArray[Any]], allocate: Allocate
) -> tuple[Bytes, dict[str, npt.NDArray[Any]]]:
    """Copy arrays into one buffer; returns it and the arrays as views of it."""
    places = list(offsets({name: arrays[name] for name in ARRAYS}))
    buffer = allocate(places[-1][2])
    views = {}
    for name, begin, end in places:
        views[name] = buffer[begin:end].view(arrays[name].dtype).reshape(arrays[name].shape)
        views[name][...] = arrays[name]
    return buffer, views


def _arrays(samples: Sequence[Sample], config: GPTConfig) -> dict[str, npt.NDArray[Any]]:
    # Inputs hold start, text, stop and start, codes.
    text_sizes = np.array([len(sample.text_ids) + 2 for sample in samples])
    code_sizes = np.array([len(sample.codes) + 1 for sample in samples])
    start_text, stop_text = [config.start_text_token], [config.stop_text_token]
    start_code, stop_code = [config.start_mel_token], [config.stop_mel_token]
    return {
        "condition": np.stack([sample.condition for sample in samples]),
        "emotion": np.stack([sample.emotion for sample in samples]),
        "text_inputs": _joined([start_text, sample.text_ids, stop_text] for sample in samples),
        "text_positions": _counted(text_sizes),
        "text_languages": _languages(samples, text_sizes, config),
        "code_inputs": _joined([start_code, sample.codes] for sample in samples),
        "code_positions": _counted(code_sizes),
        "text_targets": _joined([sample.text_ids, stop_text] for sample in samples),
        "code_targets": _joined([sample.codes, stop_code] for sample in samples),
        **_layout(text_sizes, code_sizes, config.version.conditioning_rows),
    }


def _languages(samples: Sequence[Sample], text_sizes: Integers, config: GPTConfig) -> Integers:
    if not config.version.language_rows:
        return np.empty(0, dtype=np.int64)
    return np.repeat(np.array([sample.language_row for sample in samples], dtype=np.int64), text_sizes)


def _layout(text_sizes: Integers, code_sizes: Integers, conditioning: int) -> dict[str, Any]:
    """The fields of a packed batch that follow from the sizes of its samples alone.

    Args:
        text_sizes: [samples] rows of each text.
        code_sizes: [samples] rows of each sample's codes.
        conditioning: Rows of each sample's conditioning.
    """
    num_samples = len(text_sizes)
    starts = _starts(conditioning + text_sizes + code_sizes)
    # Rows in the concatenation of all conditioning, all texts and all codes.
    text_starts = num_samples * conditioning + _starts(text_sizes)
    code_starts = text_starts[-1] + _starts(code_sizes)
    source_rows, text_rows, code_rows = [], [], []
    for i, (text_size, code_size) in enumerate(zip(text_sizes, code_sizes, strict=True)):
        source_rows += [
            i * conditioning + np.arange(conditioning),
            text_starts[i] + np.arange(text_size),
            code_starts[i] + np.arange(code_size),
        ]
        first_text = starts[i] + conditioning
        # The last text row (stop) predicts nothing. The stop code is never an input, so every code row counts.
        text_rows.append(first_text + np.arange(text_size - 1))
        code_rows.append(first_text + text_size + np.arange(code_size))
    sources, targets = np.concatenate(source_rows), np.concatenate(text_rows + code_rows)
    return {
        "source_rows": sources,
        "packed_rows": _inverse(sources, len(sources)),
        "target_rows": targets,
        "target_of_row": _inverse(targets, len(sources)),
        "cu_seqlens": starts.astype(np.int32),
    }


def _inverse(rows: Integers, size: int) -> Integers:
    """[size] the place of each number below `size` in `rows`, which has none twice; len(rows) if it is not there."""
    places = np.full(size, len(rows))
    places[rows] = np.arange(len(rows))
    return places


def _starts(sizes: Integers) -> Integers:
    """[n + 1] where each of n segments starts, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(sizes)])


def _counted(sizes: Integers) -> Integers:
    """[sum(sizes)] 0, 1, 2, … in each segment."""
    return np.concatenate([np.arange(size) for size in sizes])


def _no_arrays(config: GPTConfig) -> dict[str, npt.NDArray[Any]]:
    indices = (
        "text_inputs text_positions text_languages code_inputs code_positions text_targets code_targets source_rows "
        "packed_rows target_rows target_of_row"
    )
    return {
        "condition": np.empty((0, *config.speaker_shape), dtype=np.float32),
        "emotion": np.empty((0, config.model_dim), dtype=np.float32),
        **{name: np.empty(0, dtype=np.int64) for name in indices.split()},
        "cu_seqlens": np.zeros(1, dtype=np.int32),
    }


def _joined(pieces: Iterable[Sequence[npt.ArrayLike]]) -> Integers:
    return np.concatenate([np.asarray(part, dtype=np.int64) for piece in pieces for part in piece])
