"""One rank of a test: a step of a small model in float64, or a whole attempt that runs out of memory once.

python -m tests.distributed.worker step CAPACITY OUTPUT
python -m tests.distributed.worker out-of-memory RANK CONFIG
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from indextts_job.cli import main
from indextts_job.data.batch import collate
from indextts_job.data.packing import bins_of_rank, pack
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.training.distributed import joined, read_place
from indextts_job.training.step import Updated, train_step
from tests.support.models import SMALL, machinery, random_samples, small_model

SAMPLES = 5


def step(capacity: int, output: Path) -> None:
    """Three steps in float64; rank 0 writes what came out."""
    place = read_place(os.environ)
    samples = random_samples(SAMPLES)
    lengths = [SMALL.sample_tokens(len(sample.text_ids), len(sample.codes)) for sample in samples]
    bins = bins_of_rank(pack(lengths, capacity, place.world_size), place.rank, place.world_size)
    batches = [collate([samples[slot] for slot in taken], SMALL) for taken in bins]
    with joined(place, "cpu") as ranks:
        parts = machinery(small_model().double(), ranks=ranks)
        outcomes = [train_step(parts, batches, number, 1e-3) for number in range(3)]
    if place.rank == 0:
        last = outcomes[-1]
        assert isinstance(last, Updated)
        weights = torch.cat([p.detach().flatten() for p in parts.model.parameters()])
        found = {"weights": weights, "losses": last.losses, "norm": last.grad_norm, "samples": sorted(last.samples)}
        torch.save(found, output)


def out_of_memory(rank: int, config: str, phase: str) -> int:
    """Train; one rank runs out of memory in its fourth micro-batch, or in its second update."""
    passes = updates = 0
    update = torch.optim.AdamW.step

    def counted(optimizer: torch.optim.AdamW, *given: Any) -> Any:
        nonlocal updates
        updates += 1
        if (phase, updates, int(os.environ["RANK"])) == ("update", 2, rank):
            raise torch.OutOfMemoryError("says the test")
        return update(optimizer, *given)

    def forward(module: torch.nn.Module, _inputs: object) -> None:
        nonlocal passes
        if isinstance(module, UnifiedVoice) and module.training:
            passes += 1
            if (phase, passes, int(os.environ["RANK"])) == ("forward", 4, rank):
                raise torch.OutOfMemoryError("says the test")

    torch.nn.modules.module.register_module_forward_pre_hook(forward)
    torch.optim.AdamW.step = counted  # type: ignore[assignment,method-assign]
    return main(["train", config])


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "step":
        step(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        sys.exit(out_of_memory(int(sys.argv[2]), sys.argv[3], sys.argv[4]))
