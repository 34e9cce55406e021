"""Real tokens per second: packed training against the padded formulation of the same model.

The rival is the public trainer's: random batches, text and codes padded to the longest of their batch, one batched
causal attention, every padded row computed. Same weights, same samples, same optimizer, one process.

    python -m bench.packing [--samples 64] [--rounds 7]
"""

import argparse
from dataclasses import replace
from statistics import median
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from bench.timing import ratios, taking_turns
from bench.workload import engine, model_config, tokens_of, utterances
from indextts_job.data.packing import pack
from indextts_job.model import transformer
from indextts_job.model.attention import Attend
from indextts_job.model.batch import PackedBatch, Sample, collate
from indextts_job.model.config import GPTConfig
from indextts_job.training.step import train_step


def batched_attention(qkv: Tensor, attend: Attend, dropout: float) -> Tensor:
    """Attention of equally long sequences as one batch."""
    tokens, _, heads, head_dim = qkv.shape
    shape = (len(attend.edges.lengths), -1, heads, head_dim)
    query, key, value = (rows.reshape(shape).transpose(1, 2) for rows in qkv.unbind(1))
    output = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
    return output.transpose(1, 2).reshape(tokens, heads, head_dim)


def padded(samples: list[Sample], config: GPTConfig) -> PackedBatch:
    """Text and codes of every sample padded with their stop tokens to the longest."""
    text = max(len(sample.text_ids) for sample in samples)
    codes = max(len(sample.codes) for sample in samples)

    def stretched(values: "np.ndarray[tuple[int], np.dtype[np.integer]]", length: int, stop: int) -> np.ndarray:
        return np.concatenate([values, np.full(length - len(values), stop)])

    return collate(
        [
            replace(
                sample,
                text_ids=stretched(sample.text_ids, text, config.stop_text_token),
                codes=stretched(sample.codes, codes, config.stop_mel_token),
            )
            for sample in samples
        ],
        config,
    )


def main() -> None:
    """Print one row per batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=64, help="samples of a global batch")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    config = model_config()
    samples = utterances(given.samples, config)
    lengths = [tokens_of(sample, config) for sample in samples]
    real = sum(lengths)
    print(f"{given.samples} samples, {real / given.samples:.0f} rows on average, {torch.get_num_threads()} threads")
    print(f"{'batch':>6} {'padding':>8} {'padded tok/s':>13} {'packed tok/s':>13}   ratio, median (least … largest)")
    for size in (8, 32):
        groups = [samples[i : i + size] for i in range(0, len(samples), size)]
        padded_batches = [padded(group, config) for group in groups]
        capacity = max(*lengths, size * real // given.samples)
        packed_batches = [collate([samples[slot] for slot in slots], config) for slots in pack(lengths, capacity)]
        padded_rows = sum(batch.num_tokens for batch in padded_batches)
        one, other = engine(config), engine(config)

        def train_padded(one: object = one, batches: list[PackedBatch] = padded_batches) -> None:
            with mock.patch.object(transformer, "packed_causal_attention", batched_attention):
                train_step(one, batches, 0, 1e-4)  # type: ignore[arg-type]

        def train_packed(other: object = other, batches: list[PackedBatch] = packed_batches) -> None:
            train_step(other, batches, 0, 1e-4)  # type: ignore[arg-type]

        seconds = taking_turns({"padded": train_padded, "packed": train_packed}, given.rounds)
        rates = [real / median(seconds[name]) for name in ("padded", "packed")]
        waste = 1 - real / padded_rows
        ratio = ratios(seconds["padded"], seconds["packed"])
        print(f"{size:>6} {waste:>8.0%} {rates[0]:>13.0f} {rates[1]:>13.0f}  {ratio}")


if __name__ == "__main__":
    main()
