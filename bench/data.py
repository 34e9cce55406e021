"""Feeding from a bucket: samples per second of one epoch, ours against ready-made streaming datasets, same data.

Starts SeaweedFS on loopback, where it shares the machine with the clients. One epoch in training order, one process.
Rivals that are not installed (`bench/rivals.txt`) are named and left out.

    python -m bench.data [--samples 1000] [--rounds 3]
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import fsspec
import numpy as np

from bench.checkpoint import installed
from indextts_job.data.cache import CachedShards
from indextts_job.data.dataset import Dataset, Entry, Limits, Vector
from indextts_job.data.order import Order
from indextts_job.data.sharding import write_shards
from indextts_job.data.sources import load_dataset
from indextts_job.demo.world import World, WorldSize, make_world
from indextts_job.model.config import gpt_config
from indextts_job.storage import files
from indextts_job.storage.config import StorageConfig
from indextts_job.storage.files import read_yaml
from tests.support.servers import Server, client_environment, running, seaweedfs

BATCH = 32
FIELDS = ("text_ids", "codes", "condition", "emotion")


def upload(world: World, url: str) -> None:
    """Put a world into the bucket as it is."""
    filesystem, root = fsspec.core.url_to_fs(url)
    paths = [path for path in world.folder.rglob("*") if path.is_file()]
    filesystem.pipe({f"{root}/{path.relative_to(world.folder)}": path.read_bytes() for path in paths})


def epoch(dataset: Dataset) -> tuple[float, float]:
    """Seconds to the first batch, and of the whole epoch, in training order; every byte is verified."""
    order = Order(num_samples=len(dataset), seed=0, global_batch_samples=BATCH, total_samples=len(dataset))
    return paced(dataset.samples(order.samples_of(step).tolist()) for step in range(order.total_steps))


def paced(batches: Iterable[Any]) -> tuple[float, float]:
    """Seconds to the first batch, and to the last."""
    started_s = time.perf_counter()
    first_s = 0.0
    for _ in batches:
        first_s = first_s or time.perf_counter() - started_s
    return first_s, time.perf_counter() - started_s


def batches_of(samples: Iterable[Any]) -> Iterator[list[Any]]:
    """Samples of a rival, a batch at a time."""
    batch = []
    for sample in samples:
        batch.append([np.asarray(sample[field]) for field in FIELDS])
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def in_memory(dataset: Dataset) -> Dataset:
    """The same samples, read once; what remains is verification and assembly."""

    def held(vector: Vector) -> Vector:
        values = vector.load(False)  # noqa: FBT003
        return Vector("memory://", vector.digest, lambda _fresh: values)

    return Dataset(
        [
            Entry(
                id=entry.id,
                language=entry.language,
                origin=entry.origin,
                text_ids=entry.text_ids,
                codes=entry.codes,
                condition=held(entry.condition),
                emotion=held(entry.emotion),
            )
            for entry in dataset.entries
        ]
    )


def wait_for_copies(dataset: Dataset, cache: Path) -> None:
    """Until all shards are on this node."""
    reader = dataset.entries[0].condition.load.args[0]  # type: ignore[attr-defined]
    assert isinstance(reader, CachedShards)  # noqa: S101
    wanted = {entry.condition.load.args[1].sha256 for entry in dataset.entries}  # type: ignore[attr-defined]
    while not all((cache / f"{digest}.safetensors").exists() for digest in wanted):
        time.sleep(0.05)


def rival_rows(dataset: Dataset, server: Server, folder: Path) -> Iterator[tuple[str, Callable[[Path], Iterable[Any]]]]:
    """Ready-made streaming datasets: converted, uploaded, and how their samples are iterated with a cache folder."""
    # mosaicml-streaming imports torchvision for pictures; PyPI's build of it does not fit a CPU build of torch.
    for name in ("", ".datasets", ".datasets.folder", ".transforms", ".transforms.functional"):
        stand_in = MagicMock(VisionDataset=object, __spec__=ModuleSpec(f"torchvision{name}", None))
        sys.modules.setdefault(f"torchvision{name}", stand_in)
    if streaming := installed("streaming"):
        columns = dict.fromkeys(FIELDS, "ndarray")
        with streaming.MDSWriter(out=str(folder / "mds"), columns=columns, size_limit=2**26) as writer:
            for sample in dataset.samples(range(len(dataset))):
                writer.write({field: np.ascontiguousarray(getattr(sample, field)) for field in FIELDS})
        _upload_folder(folder / "mds", "bucket/mds")
        os.environ["S3_ENDPOINT_URL"] = server.url

        def mosaic(cache: Path) -> Iterable[Any]:
            streaming.base.util.clean_stale_shared_memory()
            local = str(cache / "mds")
            samples: Iterable[Any] = streaming.StreamingDataset(
                remote="s3://bucket/mds", local=local, shuffle=True, batch_size=BATCH
            )
            return samples

        yield "mosaicml-streaming (MDS)", mosaic
    if litdata := installed("litdata"):
        writer = installed("litdata.streaming.writer").BinaryWriter(str(folder / "lit"), chunk_bytes="64MB")
        for index, sample in enumerate(dataset.samples(range(len(dataset)))):
            writer[index] = {field: np.ascontiguousarray(getattr(sample, field)) for field in FIELDS}
        writer.done()
        writer.merge()
        _upload_folder(folder / "lit", "bucket/lit")
        options = {"endpoint_url": server.url, "region_name": "us-east-1"}
        # Its faster client refuses plain HTTP unless told otherwise, and has no setting for that.
        installed("litdata.streaming.downloader")._OBSTORE_CLIENT_OPTIONS["allow_http"] = True

        def lit(cache: Path) -> Iterable[Any]:
            folder = str(cache / "lit")
            samples: Iterable[Any] = litdata.StreamingDataset(
                "s3://bucket/lit", cache_dir=folder, shuffle=True, drop_last=False, storage_options=options
            )
            return samples

        yield "litdata", lit


def _upload_folder(folder: Path, root: str) -> None:
    filesystem = fsspec.filesystem("s3")
    filesystem.pipe({f"{root}/{path.name}": path.read_bytes() for path in folder.iterdir() if path.is_file()})


def main() -> None:
    """Print one row per way of reading."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="bench-") as name, running(seaweedfs(Path(name) / "weed")) as server:
        os.environ.update(client_environment(server))
        files.configure_object_stores(StorageConfig())
        folder = Path(name)
        world = make_world(folder / "world", WorldSize(samples=given.samples, width=1280, layers=1, heads=20))
        limits = Limits(gpt_config(read_yaml(str(world.model_config), "", ""), ""), 268)
        local = load_dataset([str(world.train_manifest)], limits, skip_bad_samples=False)
        size = sum(path.stat().st_size for path in (world.folder / "processed").rglob("*.npy"))
        upload(world, "s3://bucket/world")
        write_shards(local, "s3://bucket/shards", lambda _done, _total: None)
        compare(local, limits, server, folder, given.rounds, size)


def compare(local: Dataset, limits: Limits, server: Server, folder: Path, rounds: int, size: int) -> None:
    """Take turns, print medians."""
    unsharded = load_dataset(["s3://bucket/world/processed/gpt_pairs_train.jsonl"], limits, skip_bad_samples=False)
    memory = in_memory(local)
    rivals = list(rival_rows(local, server, folder))
    found: dict[str, list[tuple[float, float]]] = {}

    def note(name: str, seconds: tuple[float, float]) -> None:
        found.setdefault(name, []).append(seconds)

    for turn in range(rounds):
        cache = folder / f"cache-{turn}"
        note("in memory", epoch(memory))
        note("four .npy files per sample", epoch(unsharded))
        sharded = load_dataset(["s3://bucket/shards"], limits, skip_bad_samples=False, cache_folder=str(cache / "ours"))
        note("shards, cold cache", epoch(sharded))
        wait_for_copies(sharded, cache / "ours")
        note("shards, warm cache", epoch(sharded))
        for name, iterate in rivals:
            note(f"{name}, cold", paced(batches_of(iterate(cache))))
            note(f"{name}, warm", paced(batches_of(iterate(cache))))
        shutil.rmtree(cache)
    print(f"{len(local)} samples, {size / 2**20:.0f} MiB of .npy files, batches of {BATCH}")
    print(f"{'':<36}{'samples/s':>11}{'of memory':>11}{'first batch s':>15}")
    base = statistics.median(whole for _, whole in found["in memory"])
    for name, seconds in found.items():
        first_s = statistics.median(first for first, _ in seconds)
        whole_s = statistics.median(whole for _, whole in seconds)
        print(f"{name:<36}{len(local) / whole_s:>11.0f}{base / whole_s:>11.2f}{first_s:>15.3f}")


if __name__ == "__main__":
    main()
