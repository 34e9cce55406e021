"""One rank of a test: a few steps of a small model, or a whole attempt that runs out of memory once.

python -m tests.distributed.worker step CAPACITY OUTPUT
python -m tests.distributed.worker out-of-memory RANK CONFIG PHASE
python -m tests.distributed.worker full-disk RANK CONFIG
"""

import os
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from indextts_job.cli import main
from indextts_job.data.packing import bins_of_rank, pack
from indextts_job.errors import StorageFullError
from indextts_job.model.batch import PackedBatch, collate
from indextts_job.model.unified_voice import UnifiedVoice
from indextts_job.storage.remote_storage import open_storage
from indextts_job.training.distributed import ProcessGroup, joined, read_world
from indextts_job.training.step import Updated, train_step
from tests.support.models import SMALL, engine, random_samples, small_model
from tests.support.stores import FaultyStorage

SAMPLES = 5


def step(capacity: int, output: Path) -> None:
    """Three steps in every precision, with whole and with sharded moments; rank 0 writes what came out."""
    world = read_world(os.environ)
    samples = random_samples(SAMPLES)
    lengths = [SMALL.sample_tokens(len(sample.text_ids), len(sample.codes)) for sample in samples]
    bins = bins_of_rank(pack(lengths, capacity, world.world_size), world.rank, world.world_size)
    batches = [collate([samples[slot] for slot in taken], SMALL) for taken in bins]
    kinds = product(("float64", "float32", "float16"), ("whole", "sharded") if world.world_size > 1 else ("whole",))
    with joined(world, "cpu") as group:
        found = {kind: _stepped(group, batches, *kind) for kind in kinds}
    if world.rank == 0:
        torch.save(found, output)


def _stepped(group: ProcessGroup, batches: Sequence[PackedBatch], precision: str, moments: str) -> dict[str, object]:
    model = small_model()
    model = model.double() if precision == "float64" else model
    parts = engine(model, precision=precision, group=group, sharded=moments == "sharded")
    train_step(parts, batches, 0, 1e-3)
    # Of rank 0's own parameters only, if moments are sharded.
    gradient = torch.cat([p.grad.flatten() for p in parts.model.parameters() if p.grad is not None])
    last = [train_step(parts, batches, number, 1e-3) for number in (1, 2)][-1]
    assert isinstance(last, Updated)
    return {
        "gradient": gradient,
        "weights": torch.cat([p.detach().flatten() for p in parts.model.parameters()]),
        "losses": last.losses,
        "norm": last.grad_norm,
        "samples": sorted(last.samples),
    }


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


def full_disk(rank: int, config: str) -> int:
    """Train; one rank cannot write its share of the first checkpoint."""
    writes = 0

    def fault(_number: int, verb: str, key: str) -> None:
        nonlocal writes
        writes += verb == "write" and key.startswith("objects/")
        if writes == 1 and int(os.environ["RANK"]) == rank:
            writes += 1
            raise StorageFullError("no space left, says the test.")

    with mock.patch("indextts_job.attempt.run.open_storage", lambda *given: FaultyStorage(open_storage(*given), fault)):
        return main(["train", config])


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "step":
        step(int(sys.argv[2]), Path(sys.argv[3]))
    elif sys.argv[1] == "full-disk":
        sys.exit(full_disk(int(sys.argv[2]), sys.argv[3]))
    else:
        sys.exit(out_of_memory(int(sys.argv[2]), sys.argv[3], sys.argv[4]))
