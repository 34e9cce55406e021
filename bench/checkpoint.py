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
import importlib
import io
import itertools
import math
import os
import random
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import torch
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import async_save as dcp_async_save
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from bench.timing import fault_in
from bench.workload import engine, model_config, utterances
from indextts_job.checkpoint.attempt_record import AttemptRecord
from indextts_job.checkpoint.fence import Fence
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.loop.background_saver import BackgroundSaver
from indextts_job.loop.publisher import Publisher
from indextts_job.model.batch import collate
from indextts_job.report.events import Committed, Event
from indextts_job.resume.reference import LONGEST, REFERENCE_SAMPLES, Reference
from indextts_job.storage import files
from indextts_job.storage.config import StorageConfig
from indextts_job.storage.remote_files import PART_BYTES, RemoteFileSystem
from indextts_job.storage.remote_storage import open_storage
from indextts_job.training.distributed import SingleProcess
from indextts_job.training.engine import Engine
from indextts_job.training.state import TrainState
from tests.support.servers import KEY, SECRET, Server, client_environment, running, seaweedfs
from tests.support.values import values

Tensors = dict[str, torch.Tensor]
Wait = Callable[[], float | None]
"""Returns when what was begun is durable, with the seconds since the call if it knows them better."""
MIB = 2**20
FREE_COPIES = 4
"""Of the bytes that are saved: as much memory as the hungriest rival takes, and the server's pages."""
WIDTH = 512
BARE = "bare parallel PUT, ranged GET"


@dataclasses.dataclass(frozen=True)
class Rival:
    """One way to save and load a state."""

    name: str
    save: Callable[[Tensors], Wait]
    """Begins; training may go on when it returns."""
    load: Callable[[], object]


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


def at_once(work: Callable[[Tensors], object]) -> Callable[[Tensors], Wait]:
    """A save that holds the training until it is done."""

    def begin(tensors: Tensors) -> Wait:
        work(tensors)
        return lambda: None

    return begin


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


class Ours:
    """The trainer's own saver and store, with all that a save of a training does."""

    def __init__(self, url: str, state: TrainState, made: Engine) -> None:
        storage = open_storage(url)
        self._state = state
        self._store = CheckpointStore(storage)
        self.committed: list[Committed] = []
        publisher = Publisher(self._store, Fence(storage, AttemptRecord()), attempt_start=0, keep=2, files={})
        config = model_config(WIDTH, 1)
        short = [
            replace(one, text_ids=one.text_ids[:LONGEST], codes=one.codes[:LONGEST])
            for one in utterances(REFERENCE_SAMPLES, config)
        ]
        reference = Reference(collate(short, config), LONGEST)
        begun = partial(reference.begun, made)
        self._saver = BackgroundSaver(self._store, publisher, SingleProcess(), self._note, reference=begun)

    def _note(self, event: Event) -> None:
        if isinstance(event, Committed):
            self.committed.append(event)

    def save(self, _tensors: Tensors) -> Wait:
        """Through the background saver."""
        self._saver.save(self._state, (), values())

        def wait() -> float:
            finished = self._saver.finished(wait_s=math.inf)
            if finished is None or finished.error:
                raise RuntimeError(f"our save failed: {finished}")
            return finished.seconds  # until the checkpoint was visible; it is tidied behind that

        return wait

    def load(self) -> object:
        """The newest checkpoint, verified."""
        return self._store.load(self._store.manifest(self._store.names()[-1]))


def bare(size: int) -> Rival:
    """The same bytes through the same client, without any format, hash or order of commits."""
    filesystem = fsspec.filesystem("s3")
    part = 32 * MIB
    keys = [f"bucket/bare/{start}" for start in range(0, size, part)]
    pool = ThreadPoolExecutor(16)
    reader = RemoteFileSystem(filesystem)

    def save(tensors: Tensors) -> Wait:
        body = torch.cat([tensor.flatten().view(torch.uint8) for tensor in tensors.values()]).numpy()
        with ThreadPoolExecutor(3) as writers:
            bodies = (body[i * part : (i + 1) * part] for i in range(len(keys)))
            list(writers.map(lambda key, one: filesystem.pipe_file(key, one.tobytes()), keys, bodies))
        return lambda: None

    def load() -> object:
        ranges = [(key, start) for key in keys for start in range(0, part, PART_BYTES)]
        return list(pool.map(lambda one: reader.read_range(one[0], one[1], one[1] + PART_BYTES), ranges))

    return Rival(BARE, save, load)


def torch_rivals(tensors: Tensors) -> Iterator[Rival]:
    """What torch itself saves to a bucket."""
    filesystem = fsspec.filesystem("s3")

    def save_torch(values: Tensors) -> None:
        with filesystem.open("bucket/torch/latest.pth", "wb") as file:
            torch.save(values, file)

    def load_torch() -> object:
        with filesystem.open("bucket/torch/latest.pth", "rb") as file:
            return torch.load(io.BytesIO(file.read()), weights_only=True)

    yield Rival("torch.save to an s3fs file", at_once(save_torch), load_torch)
    numbers = itertools.count()
    urls: list[str] = []

    def next_url() -> str:
        urls.append(f"s3://bucket/dcp/{next(numbers)}")
        return urls[-1]

    def load_dcp() -> None:
        empty = {key: torch.empty_like(value) for key, value in tensors.items()}
        dcp_load(empty, storage_reader=FsspecReader(urls[-1]), no_dist=True)

    def save_dcp(values: Tensors) -> object:
        return dcp_save(values, storage_writer=FsspecWriter(next_url()), no_dist=True)

    def begin_dcp(values: Tensors) -> Wait:
        future: Any = dcp_async_save(values, storage_writer=FsspecWriter(next_url()), no_dist=True)
        return lambda: _awaited(future)

    yield Rival("distributed.checkpoint, fsspec", at_once(save_dcp), load_dcp)
    yield Rival("the same, async_save", begin_dcp, load_dcp)


def client_rivals(server: Server) -> Iterator[Rival]:
    """`torch.save` through other S3 clients."""
    if connector := installed("s3torchconnector"):
        config = connector.S3ClientConfig(force_path_style=True)
        s3 = connector.S3Checkpoint("us-east-1", endpoint=server.url, s3client_config=config)

        def save_connector(values: Tensors) -> None:
            with s3.writer("s3://bucket/connector/latest.pth") as writer:
                torch.save(values, writer)

        def load_connector() -> object:
            with s3.reader("s3://bucket/connector/latest.pth") as reader:
                return torch.load(reader, weights_only=True)

        yield Rival("s3torchconnector, torch.save", at_once(save_connector), load_connector)
    if obstore := installed("obstore"):
        store = installed("obstore.store").S3Store(
            "bucket",
            endpoint=server.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region="us-east-1",
            client_options={"allow_http": True},
        )

        def save_obstore(values: Tensors) -> None:
            body = io.BytesIO()
            torch.save(values, body)
            obstore.put(store, "obstore/latest.pth", body.getbuffer(), chunk_size=PART_BYTES, max_concurrency=8)

        def load_obstore() -> object:
            size = obstore.head(store, "obstore/latest.pth")["size"]
            starts = list(range(0, size, PART_BYTES))
            ends = [min(start + PART_BYTES, size) for start in starts]
            parts = obstore.get_ranges(store, "obstore/latest.pth", starts=starts, ends=ends, coalesce=0)
            return torch.load(io.BytesIO(b"".join(map(memoryview, parts))), weights_only=True)

        yield Rival("obstore, torch.save, ranges", at_once(save_obstore), load_obstore)


def local_rivals(folder: Path, tensors: Tensors) -> Iterator[Rival]:
    """What saves to a disk."""
    path = folder / "latest.pth"
    yield Rival(
        "torch.save, not fsynced",
        at_once(lambda values: torch.save(values, path)),
        lambda: torch.load(path, weights_only=True),
    )
    if library := installed("torch_checkpointing"):
        plain = installed("torch_checkpointing.storage.filesystem").LocalFileSystemStorageConfig(use_direct_io=False)
        config = library.CheckpointManager.Config(storage_config=plain)  # its direct I/O fails on ext4 (0.1.1)
        manager = library.CheckpointManager(config)
        numbers = itertools.count()
        names: list[str] = []

        def begin(values: Tensors) -> Wait:
            names.append(str(folder / f"meta-{next(numbers)}"))
            future = manager.save(names[-1], {"state": values})
            with manager.lock():  # waits until the state may change
                pass
            return lambda: _awaited(future)

        def load() -> object:
            return manager.load(names[-1], {"state": {key: torch.empty_like(value) for key, value in tensors.items()}})

        yield Rival("torch_checkpointing, async", begin, load)


def _awaited(future: Any) -> None:  # noqa: ANN401
    future.result()


def installed(module: str) -> Any:  # noqa: ANN401  # a module
    """A rival's module, or None with a line that says so."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        print(f"left out: {module} ({error})")
        return None


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
