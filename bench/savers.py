"""The ways to save and load a state that `bench/checkpoint.py` compares: ours, a bare transfer, and those of others."""

import dataclasses
import importlib
import io
import itertools
import math
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

from bench.workload import model_config, utterances
from indextts_job.checkpoint.attempt_record import AttemptRecord
from indextts_job.checkpoint.fence import Fence
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.loop.background_saver import BackgroundSaver
from indextts_job.loop.publisher import Publisher
from indextts_job.model.batch import collate
from indextts_job.report.events import Committed, Event
from indextts_job.resume.reference import LONGEST, REFERENCE_SAMPLES, Reference
from indextts_job.storage.remote_files import PART_BYTES, RemoteFileSystem
from indextts_job.storage.remote_storage import open_storage
from indextts_job.training.distributed import SingleProcess
from indextts_job.training.engine import Engine
from indextts_job.training.state import TrainState
from tests.support.servers import KEY, SECRET, Server
from tests.support.values import values

Tensors = dict[str, torch.Tensor]
Wait = Callable[[], float | None]
"""Returns when what was begun is durable, with the seconds since the call if it knows them better."""
WIDTH = 512
"""Of the model whose state is saved."""
MIB = 2**20
BARE = "bare parallel PUT, ranged GET"


@dataclasses.dataclass(frozen=True)
class Rival:
    """One way to save and load a state."""

    name: str
    save: Callable[[Tensors], Wait]
    """Begins; training may go on when it returns."""
    load: Callable[[], object]


def at_once(work: Callable[[Tensors], object]) -> Callable[[Tensors], Wait]:
    """A save that holds the training until it is done."""

    def begin(tensors: Tensors) -> Wait:
        work(tensors)
        return lambda: None

    return begin


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
