"""Feeding from a bucket: samples per second of one epoch, ours against ready-made streaming datasets, same data.

Starts SeaweedFS on loopback, where it shares the machine with the clients. One epoch in training order, one process.
Rivals that are not installed (`bench/rivals.txt`) are named and left out.

    python -m bench.data [--samples 1000] [--rounds 5]
"""

import argparse
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import fsspec
import numpy as np

from bench.savers import installed
from indextts_job.data.dataset import Dataset, Limits
from indextts_job.data.order import Order
from indextts_job.data.shard_index import INDEX, Shard, parse_index
from indextts_job.data.sharding import write_shards
from indextts_job.data.shards import shard_part
from indextts_job.data.sources import load_dataset
from indextts_job.demo.world import World, WorldSize, make_world
from indextts_job.model.config import GPTConfig, gpt_config
from indextts_job.storage import files
from indextts_job.storage.config import StorageConfig
from indextts_job.storage.files import read_yaml
from indextts_job.storage.node_cache import shard_folder
from indextts_job.storage.reader import RemoteReader
from indextts_job.storage.remote_files import PARALLEL, PART_BYTES
from tests.support.servers import Server, client_environment, running, seaweedfs

BATCH = 32
FIELDS = ("text_ids", "codes", "condition", "emotion")
MEMORY, COLD, WARM, GET = "in memory", "shards, cold", "shards, warm", "bare ranged GET of the shards"
Seconds = list[tuple[float, float]]
"""Seconds to the first batch and of the whole epoch, for each round."""
FOREVER = (math.inf, math.inf)


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


class HeldShards:
    """Shards in memory: what remains of reading them is verification and assembly."""

    def __init__(self, folder: Path) -> None:
        self._contents = {path.name: memoryview(path.read_bytes()) for path in folder.glob("*-*.safetensors")}

    def here(self, shard: Shard, start: int, stop: int) -> memoryview:
        """See `shards.ReadRange`."""
        return self._contents[shard.name][start:stop]

    def soon(self, shard: Shard) -> bool:
        """See `shards.ReadRange`."""
        return shard.name in self._contents

    def __call__(self, shard: Shard, start: int, stop: int, *, fresh: bool = False) -> memoryview:
        """See `shards.ReadRange`."""
        del fresh
        return self.here(shard, start, stop)


def in_memory(folder: Path, model: GPTConfig) -> Dataset:
    """A sharded dataset with all of its bytes in memory."""
    index = parse_index((folder / INDEX).read_bytes(), INDEX)
    return Dataset([shard_part(index, str(folder), HeldShards(folder), model)])


def bare(shards: Sequence[Shard], url: str) -> tuple[float, float]:
    """Seconds to the first part and to the last of the same bytes, as plain ranged requests in parallel."""
    reader = RemoteReader(url, 60.0)
    parts = [
        (start, min(start + PART_BYTES, shard.size_bytes), shard.name)
        for shard in shards
        for start in range(0, shard.size_bytes, PART_BYTES)
    ]

    def contents() -> Iterator[bytes]:
        with ThreadPoolExecutor(PARALLEL) as pool:
            yield from pool.map(lambda part: reader.read_range(*part), parts)

    return paced(contents())


def shards_of(folder: Path) -> list[Shard]:
    """All shards of a dataset."""
    tables = parse_index((folder / INDEX).read_bytes(), INDEX).tables
    return [shard for table in tables.values() for shard in table.shards]


def wait_for_copies(shards: Sequence[Shard], cache: Path) -> None:
    """Until all shards are on this node."""
    while not all((cache / f"{shard.sha256}.safetensors").exists() for shard in shards):
        time.sleep(0.02)


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
    parser.add_argument("--rounds", type=int, default=5)
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
        for url in (str(folder / "shards"), "s3://bucket/shards"):
            write_shards(local, url, lambda _done, _total: None)
        print(f"{len(local)} samples, {size / 2**20:.0f} MiB of .npy files, batches of {BATCH}, {given.rounds} rounds")
        table(len(local), compare(local, limits, server, folder, given.rounds))


def compare(local: Dataset, limits: Limits, server: Server, folder: Path, rounds: int) -> dict[str, Seconds]:
    """Take turns; seconds to the first batch and of the epoch, by name and round."""
    unsharded = load_dataset(["s3://bucket/world/processed/gpt_pairs_train.jsonl"], limits, skip_bad_samples=False)
    memory, shards = in_memory(folder / "shards", limits.model), shards_of(folder / "shards")
    rivals = list(rival_rows(local, server, folder))
    found: dict[str, Seconds] = {}
    for turn in range(rounds + 1):
        cache = folder / f"cache-{turn}"
        row: dict[str, tuple[float, float]] = {}
        row[GET] = bare(shards, "s3://bucket/shards")
        sharded = load_dataset(["s3://bucket/shards"], limits, skip_bad_samples=False, cache_folder=str(cache / "ours"))
        row[COLD] = epoch(sharded)
        wait_for_copies(shards, shard_folder(str(cache / "ours")))
        epoch(sharded)  # maps the copies
        for _ in range(3):  # short, so each is the best of three
            row[WARM] = min(row.get(WARM, FOREVER), epoch(sharded), key=lambda seconds: seconds[1])
            row[MEMORY] = min(row.get(MEMORY, FOREVER), epoch(memory), key=lambda seconds: seconds[1])
        row["four .npy files per sample"] = epoch(unsharded)
        for name, iterate in rivals:
            row[f"{name}, cold"] = paced(batches_of(iterate(cache)))
            row[f"{name}, warm"] = paced(batches_of(iterate(cache)))
        shutil.rmtree(cache)
        if turn:  # the first round opens connections and imports modules
            for name, seconds in row.items():
                found.setdefault(name, []).append(seconds)
    return found


def table(samples: int, found: Mapping[str, Seconds]) -> None:
    """Print medians, and ratios within a round with their spread."""
    print(f"{'':<32}{'samples/s':>20}{'of memory':>19}{'of the bare GET':>19}{'of the best rival':>20}{'first s':>9}")
    rounds = len(found[MEMORY])
    rivals = {ending: [name for name in found if name.endswith(ending) and name not in (COLD, WARM)] for ending in
              (", cold", ", warm")}  # fmt: skip
    for name, seconds in found.items():
        rates = sorted(samples / whole_s for _, whole_s in seconds)
        ending = ", warm" if name == WARM else ", cold"
        best = [
            (0.0, min(found[rival][turn][1] for rival in rivals[ending])) for turn in range(rounds) if rivals[ending]
        ]
        texts = [f"{statistics.median(rates):.0f} ({rates[0]:.0f} … {rates[-1]:.0f})"]
        texts += [within(other, seconds) for other in (found[MEMORY], found[GET], best if name in (COLD, WARM) else [])]
        first_s = statistics.median(first for first, _ in seconds)
        print(f"{name:<32}{texts[0]:>20}{texts[1]:>19}{texts[2]:>19}{texts[3]:>20}{first_s:>9.3f}")


def within(others: Seconds, own: Seconds) -> str:
    """Median, least and largest ratio of speeds within a round; empty without the others."""
    ratios = sorted(other[1] / seconds[1] for other, seconds in zip(others, own, strict=False))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f})" if ratios else ""


if __name__ == "__main__":
    main()
