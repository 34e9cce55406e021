"""Dropout keyed by sample and position, whose masks no cut into micro-batches changes, against torch's.

Only what follows the projections is keyed; attention weights would have to leave their kernel too, which costs more.

    python -m bench.dropout [--rounds 5]
"""

import argparse
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from bench.timing import alternate
from bench.workload import engine, model_config, tokens_of, utterances
from indextts_job.data.packing import pack
from indextts_job.model.batch import PackedBatch, collate
from indextts_job.model.transformer import Attention
from indextts_job.training.engine import Engine
from indextts_job.training.step import train_step

PROBABILITY = 0.1
_MULTIPLIER = 0x45D9F3B
"""Of a 32-bit mixing function; its quality matters less here than its price."""


def keyed_dropout(x: Tensor, probability: float, training: bool = True) -> Tensor:  # noqa: FBT001, FBT002  # as torch's
    """Dropout by a hash of (row, column): the least that such a mask can cost without a kernel of its own."""
    if not training or not probability:
        return x
    rows = torch.arange(x.shape[0], device=x.device, dtype=torch.int32)[:, None] * x.shape[1]
    bits = rows + torch.arange(x.shape[1], device=x.device, dtype=torch.int32)
    for _ in range(2):
        bits = (bits.bitwise_right_shift(16) ^ bits) * _MULTIPLIER
    kept = (bits & 0xFFFF) >= int(probability * 0x10000)
    return x * kept / (1 - probability)


def stepped(parts: Engine, batches: list[PackedBatch]) -> None:
    """One step."""
    train_step(parts, batches, 0, 1e-4)


def main() -> None:
    """Print the price of a step with either."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    config = model_config()
    samples = utterances(16, config)
    bins = pack([tokens_of(sample, config) for sample in samples], 4096)
    batches = [collate([samples[slot] for slot in slots], config) for slots in bins]
    none, usual, keyed = (engine(config, dropout=rate) for rate in (0.0, PROBABILITY, PROBABILITY))
    for module in keyed.model.modules():
        if isinstance(module, Attention):
            module.dropout = 0.0  # of the weights; what follows the projection is patched in below

    def of_probability(x: Tensor, _given: float, training: bool) -> Tensor:  # noqa: FBT001  # as torch's
        return keyed_dropout(x, PROBABILITY, training)

    def with_keys() -> None:
        with mock.patch.object(torch.nn.functional, "dropout", of_probability):
            train_step(keyed, batches, 0, 1e-4)

    seconds = alternate(
        {
            "none": partial(stepped, none, batches),
            "torch's": partial(stepped, usual, batches),
            "keyed": with_keys,
        },
        given.rounds,
    )
    for name, taken_s in seconds.items():
        print(f"{name:<10}{taken_s:>8.2f} s a step{taken_s / seconds['none'] - 1:>10.1%} over none")


if __name__ == "__main__":
    main()
