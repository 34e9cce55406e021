"""Saves and loads: our store against what others do with the same state, on one server and on one disk, in one run.

Starts SeaweedFS on loopback, where it shares the machine with the clients. Rivals that are not installed
(`bench/rivals.txt`) are named and left out. They take turns, each round in another order, and each save and each load
finds the same memory: free, and not given back to a host. With `--rest 4` a load finds memory that was given back, as
on a machine that has just booted.

    python -m bench.checkpoint [--mebibytes 384] [--rounds 5] [--only bare,indextts] [--rest 0] [--no-disk]
"""

import argparse
import dataclasses
import gc
import os
import random
import re
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch

from bench.savers import MIB, WIDTH, Ours, Rival, Tensors, bare, client_rivals, local_rivals, torch_rivals
from bench.timing import fault_in
from bench.workload import engine, model_config
from indextts_job.storage import files
from indextts_job.storage.config import StorageConfig
from indextts_job.training.engine import Engine
from indextts_job.training.state import TrainState
from tests.support.servers import client_environment, running, seaweedfs

FREE_COPIES = 4
"""Of the bytes that are saved: as much memory as the hungriest rival takes, and the server's pages."""


@dataclasses.dataclass
class Measured:
    """Of one rival, one entry per round."""

    stalls: list[float] = dataclasses.field(default_factory=list)
    """In copies of the bytes, each copied immediately before: the server and what a rival has left slow copies too."""
    save_s: list[float] = dataclasses.field(default_factory=list)
    load_s: list[float] = dataclasses.field(default_factory=list)
    cpu_s: list[float] = dataclasses.field(default_factory=list)
    """Processor time of this process for a save: the training cannot have it."""
    busy: list[float] = dataclasses.field(default_factory=list)
    """Share of the machine's processors, the server included, that were busy during a save: near 1 nobody is faster."""
    memory_mib: list[float] = dataclasses.field(default_factory=list)
    """Highest memory while saving, above that before."""


def engine_of(mebibytes: int) -> Engine:
    """A small model with its optimizer; about `mebibytes` of weights and moments."""
    layers = max(1, round(mebibytes / 12 / (12 * WIDTH**2 / 2**20)))
    return engine(model_config(WIDTH, layers))


def state_of(made: Engine) -> TrainState:
    """The state after one step."""
    for parameter in made.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    made.optimizer.step()
    assert isinstance(made.optimizer, torch.optim.AdamW)  # noqa: S101
    return TrainState(model=made.model, optimizer=made.optimizer, scaler=made.scaler, step=1)


def tensors_of(state: TrainState) -> Tensors:
    """Everything that is saved, flat."""
    return {key: tensor.detach() for group in state.tensor_groups() for key, tensor in group.items()}


def change(state: TrainState) -> None:
    """Another state of the same size, as a step would leave it."""
    with torch.no_grad():
        for tensor in tensors_of(state).values():
            tensor.add_(1.0)
    state.step += 1


def measure(rivals: list[Rival], state: TrainState, rounds: int, rest_s: float = 0.0) -> dict[str, Measured]:
    """Take turns; the first one does not count, except for memory: later ones find their buffers.

    Args:
        rivals: Of whom the first is the yardstick.
        state: What they save.
        rounds: How often.
        rest_s: Seconds before a load in which a host may take free memory; 0 = the memory is there.
    """
    found = {rival.name: Measured() for rival in rivals}
    for turn in range(rounds + 1):
        # Not in a circle: what a rival leaves for the server to tidy would always meet the same one.
        for rival in random.Random(turn).sample(rivals, len(rivals)):  # noqa: S311
            change(state)
            tensors = tensors_of(state)
            size = sum(tensor.nbytes for tensor in tensors.values())
            # What the rival before has left: garbage, and pages that the disk has still to write.
            gc.collect()
            os.sync()
            fault_in(FREE_COPIES * size)
            copy_s = seconds_of_copy(tensors)
            before = peak_memory_from_here()
            idle_s, cpu_s, started_s = idle_seconds(), time.process_time(), time.perf_counter()
            wait = rival.save(tensors)
            stall_s = time.perf_counter() - started_s
            visible_s = wait()
            ended_s = time.perf_counter() - started_s
            idle_s, cpu_s = idle_seconds() - idle_s, time.process_time() - cpu_s
            save_s = visible_s or ended_s
            memory = peak_memory_mib() - before
            gc.collect()
            if rest_s:
                time.sleep(rest_s)
            else:
                fault_in(FREE_COPIES * size)
            started_s = time.perf_counter()
            rival.load()
            load_s = time.perf_counter() - started_s
            kept = found[rival.name]
            kept.memory_mib.append(memory)
            if turn:
                kept.stalls.append(stall_s / copy_s)
                kept.save_s.append(save_s)
                kept.load_s.append(load_s)
                kept.cpu_s.append(cpu_s)
                kept.busy.append(1 - idle_s / ended_s / (os.cpu_count() or 1))
    return found


def idle_seconds() -> float:
    """Seconds that all processors of the machine have been idle so far, or waited for a disk."""
    with Path("/proc/stat").open() as file:
        ticks = file.readline().split()
    return (int(ticks[4]) + int(ticks[5])) / os.sysconf("SC_CLK_TCK")


def peak_memory_from_here() -> float:
    """Forget the highest memory so far; the memory now in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mib("VmRSS")


def peak_memory_mib() -> float:
    """The highest memory since it was forgotten."""
    return _status_mib("VmHWM")


def _status_mib(key: str) -> float:
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match  # noqa: S101  # Linux has it
    return int(match[1]) / 1024


def seconds_of_copy(tensors: Tensors) -> float:
    """One copy of the changed bytes into memory that is there: what a save has to cost at least."""
    buffers = {key: torch.empty_like(tensor) for key, tensor in tensors.items()}
    seconds = []
    for _ in range(6):
        started_s = time.perf_counter()
        for key, tensor in tensors.items():
            buffers[key].copy_(tensor)
        seconds.append(time.perf_counter() - started_s)
    return statistics.median(seconds[1:])


def report(title: str, found: dict[str, Measured], size: int) -> None:
    """Medians: stalls as ratios to a copy, rates as ratios to the first row."""
    first = next(iter(found.values()))
    print(f"\n{title}, {size / MIB:.0f} MiB, rates relative to the first row, median (lowest … highest)")
    print(f"{'':<32}{'stall / copy':>26}{'save':>21}{'load':>21}"
          f"{'cpu s':>7}{'busy':>6}{'memory MiB':>12}")  # fmt: skip
    for name, measured in found.items():
        save = _ratios(first.save_s, measured.save_s)
        load = _ratios(first.load_s, measured.load_s)
        stall = _middle(measured.stalls)
        print(f"{name:<32}{stall:>26}{save:>21}{load:>21}"
              f"{statistics.median(measured.cpu_s):>7.2f}{statistics.median(measured.busy):>6.2f}"
              f"{max(measured.memory_mib):>12.0f}")  # fmt: skip
    print(f"first row: save {size / MIB / statistics.median(first.save_s):.0f} MiB/s, "
          f"load {size / MIB / statistics.median(first.load_s):.0f} MiB/s")  # fmt: skip


def _ratios(base: list[float], mine: list[float]) -> str:
    return _middle([one / other for one, other in zip(base, mine, strict=True)])


def _middle(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})"


def main() -> None:
    """Print a table for a bucket and one for a disk."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="beginnings of the names of the rivals, with commas; default all")
    parser.add_argument("--rest", type=float, default=0.0, help="seconds before a load in which memory is given back")
    parser.add_argument("--no-disk", action="store_true", help="the bucket only")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    made = engine_of(given.mebibytes)
    state = state_of(made)
    tensors = tensors_of(state)
    size = sum(tensor.nbytes for tensor in tensors.values())
    print(f"one copy of {size / MIB:.0f} MiB: {seconds_of_copy(tensors) * 1000:.0f} ms")
    with tempfile.TemporaryDirectory(prefix="bench-") as name, running(seaweedfs(Path(name))) as server:
        os.environ.update(client_environment(server))
        files.configure_object_stores(StorageConfig())
        ours = Ours("s3://bucket/ours", state, made)
        rivals = [
            bare(size),
            Rival("indextts-job", ours.save, ours.load),
            *torch_rivals(tensors),
            *client_rivals(server),
        ]
        wanted = tuple(given.only.split(","))
        rivals = [rival for rival in rivals if rival.name.startswith(wanted)]
        report("SeaweedFS on loopback", measure(rivals, state, given.rounds, given.rest), size)
        last = ours.committed[-1]
        print(f"bytes written by a later save of ours: {last.bytes_written / size:.4f} of the changed ones")
        ours.save(tensors)()
        state.step += 1
        ours.save(tensors)()
        print(f"saved again unchanged: {ours.committed[-1].bytes_written} bytes")
    if given.no_disk:
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        ours = Ours(f"{name}/ours", state, made)
        rivals = [Rival("indextts-job, fsynced", ours.save, ours.load), *local_rivals(Path(name).resolve(), tensors)]
        report("local disk", measure(rivals, state, given.rounds), size)


if __name__ == "__main__":
    main()
