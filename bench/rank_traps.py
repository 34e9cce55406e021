"""What each exchange of gradients does when a step does not end as usual on one of three ranks, over gloo.

python -m bench.rank_traps
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bench.exchanges import engine_of, fsdp, micro_batches
from bench.workload import engine, model_config
from indextts_job.model.batch import PackedBatch, collate
from indextts_job.training.distributed import World
from indextts_job.training.engine import Engine, to_device
from indextts_job.training.roll_call import RollCall
from indextts_job.training.step import reset_step, train_step
from tests.support.warm_parent import REPOSITORY

WIDTH, LAYERS, RANKS = 64, 4, 3
LIMIT_S = 6.0
"""Time-out of a collective; who needs as long waits for ever."""
TRAPS = ("no samples", "memory: last backward", "memory: forward", "restart")
RIVALS = ("buckets", "buckets, sharded", "DDP", "DDP, unused", "FSDP2")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        torch.set_num_threads(1)
        _worker(*given.worker)
        return
    for rival in RIVALS:
        for trap in TRAPS:
            if rival != "FSDP2" or trap == "memory: forward":
                print(f"{rival:<20}{trap:<24}{_outcome(rival, trap)}", flush=True)


def _outcome(rival: str, trap: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bench.rank_traps", "--worker", rival, trap]
        base = {
            **os.environ,
            "WORLD_SIZE": str(RANKS),
            "BENCH_MEETING": f"{folder}/meeting",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        ranks = [
            subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env={**base, "RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for rank in range(RANKS)
        ]
        return "; ".join(dict.fromkeys(rank.communicate()[0].strip() or "crashes" for rank in ranks))


def _worker(rival: str, trap: str) -> None:
    from indextts_job.training.distributed import TorchProcessGroup  # noqa: PLC0415

    rank = int(os.environ["RANK"])
    store = dist.FileStore(os.environ["BENCH_MEETING"], RANKS)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=LIMIT_S))
    group = TorchProcessGroup(World(rank=rank, world_size=RANKS), RollCall(store, rank, RANKS))
    batches = micro_batches(rank, WIDTH, LAYERS, 2)
    began_s = time.monotonic()
    try:
        if rival == "FSDP2":
            found = _fsdp_without_memory(rank, batches)
        else:
            found = _tried(lambda: engine_of(rival, group, WIDTH, LAYERS), trap, batches)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the result
        waited = time.monotonic() - began_s > LIMIT_S / 2
        found = "waits until the time-out" if waited else f"fails: {str(error).splitlines()[0][:70]}"
    sys.stdout.write(found)
    sys.stdout.flush()
    os._exit(0)  # the others may never come to an orderly end


def _tried(built: Callable[[], Engine], trap: str, batches: list[PackedBatch]) -> str:
    parts = built()
    lost = parts.group.rank == 1
    train_step(parts, batches, 0, 1e-3)
    if trap == "restart":
        return _restarted(parts, built(), batches)
    if trap == "no samples":
        train_step(parts, [batches[0], collate([], model_config(WIDTH, LAYERS))] if lost else batches, 1, 1e-3)
    else:
        try:
            with _memory_short(parts.model, trap, strikes=lost):
                train_step(parts, batches, 1, 1e-3)
        except torch.OutOfMemoryError:
            reset_step(parts, 1)
    train_step(parts, batches, 1, 1e-3)
    return "goes on"


def _memory_short(model: nn.Module, trap: str, *, strikes: bool) -> torch.utils.hooks.RemovableHandle:
    """In the last micro-batch of a step."""
    passes: list[None] = []

    def strike(*_given: object) -> None:
        passes.append(None)
        if strikes and len(passes) == 2:
            raise torch.OutOfMemoryError

    name = "gpt.h.1.ln_1"
    module = next(module for key, module in model.named_modules() if key.endswith(name))
    forward = trap == "memory: forward"
    handle: torch.utils.hooks.RemovableHandle = (
        module.register_forward_pre_hook(strike) if forward else module.weight.register_hook(strike)
    )
    return handle


def _restarted(first: Engine, second: Engine, batches: list[PackedBatch]) -> str:
    """One more step, beside the same step after a restart from a checkpoint."""
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    sums = []
    for parts in (first, second):
        train_step(parts, batches, 1, 0.0)
        sums.append(torch.cat([p.grad.flatten() for p in parts.model.parameters() if p.grad is not None]))
    differ = int((sums[0] != sums[1]).sum())
    return f"{differ} of {len(sums[0])} gradients differ" if differ else "same bits"


def _fsdp_without_memory(rank: int, batches: list[PackedBatch]) -> str:
    base = engine(model_config(WIDTH, LAYERS))
    fsdp(base.model, RANKS)
    flag = torch.zeros(1)
    try:
        with _memory_short(base.model, "memory: forward", strikes=rank == 1):
            for batch in batches:
                sums = base.model(to_device(batch, base.device))
                loss: Tensor = sums.text + sums.mel
                loss.backward()  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:
        flag += 1
    dist.all_reduce(flag)
    return "goes on"


if __name__ == "__main__":
    main()
