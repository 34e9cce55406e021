"""Training data in a bucket: the same bits as from disk, with and without copies on the node."""

import fcntl
import hashlib
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from indextts_job.data.cache import CachedShards
from indextts_job.data.dataset import Dataset, Limits
from indextts_job.data.downloads import SPARE_BYTES
from indextts_job.data.shard_index import Shard
from indextts_job.data.sharding import write_shards
from indextts_job.data.shards import ShardSource
from indextts_job.data.sources import load_dataset
from indextts_job.demo.world import World
from indextts_job.errors import DataError, UnavailableError
from indextts_job.model.config import gpt_config
from indextts_job.storage.files import read_yaml
from indextts_job.storage.node_cache import shard_folder
from tests.support.attempts import attempt
from tests.support.runs import config_for, newest, state_of

SMALL_SHARD = 3 * 32 * 32 * 4


@pytest.fixture
def limits(world: World) -> Limits:
    return Limits(gpt_config(read_yaml(str(world.model_config), "", ""), ""), 217)


@pytest.fixture
def dataset(world: World, limits: Limits) -> Dataset:
    return load_dataset([f"{world.train_manifest}::am"], limits, skip_bad_samples=False)


@pytest.fixture
def shards(dataset: Dataset, s3_run: str) -> str:
    url = f"{s3_run}-shards"
    write_shards(dataset, url, lambda _done, _total: None, shard_bytes=SMALL_SHARD)
    return url


def remote(shards: str, limits: Limits, cache: Path, free_ratio: float = 0.0) -> tuple[Dataset, CachedShards]:
    dataset = load_dataset(
        [shards], limits, skip_bad_samples=False, cache_folder=str(cache.parents[1]), cache_free_ratio=free_ratio
    )
    return dataset, source_of(dataset).reader  # type: ignore[return-value]


def source_of(dataset: Dataset) -> ShardSource:
    source = dataset.parts[0].source
    assert isinstance(source, ShardSource)
    assert isinstance(source.reader, CachedShards)
    return source


def wait_for_copies(cache: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(cache.glob("[!.]*.safetensors"))) < count:
        assert time.monotonic() < deadline


def same(one: Dataset, other: Dataset) -> bool:
    pairs = zip(one.samples(range(len(one))), other.samples(range(len(other))), strict=True)
    return all(np.array_equal(a.condition, b.condition) and np.array_equal(a.emotion, b.emotion) for a, b in pairs)


def test_copies_fill_behind_the_first_rows_and_end_the_traffic(
    dataset: Dataset, shards: str, limits: Limits, tmp_path: Path
) -> None:
    cache = shard_folder(str(tmp_path / "cache"))
    cold, _ = remote(shards, limits, cache)
    assert cold.fingerprint == dataset.fingerprint
    assert same(cold, dataset)  # by requests for rows, or by the copies if these are faster
    wait_for_copies(cache, 15)  # 14 shards of conditions, 1 of emotions
    warm, reader = remote(shards, limits, cache)
    assert same(warm, dataset)
    assert reader.requests == 0
    for path in cache.iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name.partition(".")[0]


def test_evicted_and_rotten_copies_are_fetched_again(
    dataset: Dataset, shards: str, limits: Limits, tmp_path: Path
) -> None:
    cache = shard_folder(str(tmp_path / "cache"))
    assert same(remote(shards, limits, cache)[0], dataset)
    wait_for_copies(cache, 15)
    first, second, third, *_ = sorted(cache.iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-50])
    rotten = bytearray(third.read_bytes())
    rotten[-100] ^= 1
    third.write_bytes(rotten)
    again, reader = remote(shards, limits, cache)
    assert same(again, dataset)
    assert reader.requests > 0


def test_a_cache_that_cannot_be_written_costs_requests_only(
    dataset: Dataset, shards: str, limits: Limits, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    without, reader = remote(shards, limits, shard_folder(str(blocked / "cache")))
    assert same(without, dataset)
    assert same(without, dataset)
    assert reader.requests >= 2 * 40


def test_an_object_that_changed_or_vanished_is_never_accepted(shards: str, limits: Limits, tmp_path: Path) -> None:
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(shards)
    changed, _ = remote(shards, limits, shard_folder(str(tmp_path / "cache")))
    name = f"{root}/condition-00000.safetensors"
    content = filesystem.cat_file(name)
    filesystem.pipe_file(name, content[:-500] + bytes(500))
    with pytest.raises(DataError, match=r"condition-00000\.safetensors, row"):
        changed.samples(range(40))
    filesystem.pipe_file(name, content)
    gone, _ = remote(shards, limits, tmp_path / "other")
    filesystem.rm_file(name)
    with pytest.raises(UnavailableError, match="cannot be read now"):
        gone.samples(range(40))
    with pytest.raises(DataError, match=r"condition-00000\.safetensors: missing"):
        remote(shards, limits, tmp_path / "other")


def test_parts_serve_rows_before_their_shard_is_whole(
    dataset: Dataset, shards: str, limits: Limits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indextts_job.data.downloads.PART_BYTES", 4096)
    cold, reader = remote(shards, limits, shard_folder(str(tmp_path / "cache")))
    last_part_may_come = threading.Event()
    fetch = reader._fetch

    def without_the_last_part(shard: Shard, start: int, stop: int) -> bytes:
        if stop == shard.size_bytes and shard.name.startswith("condition"):
            last_part_may_come.wait()
        return fetch(shard, start, stop)

    reader._downloads._fetch = without_the_last_part
    first = cold.sample(0)
    place = source_of(cold).place("condition", 0)
    deadline = time.monotonic() + 60
    while reader._downloads.received(*place) is None:
        assert time.monotonic() < deadline
    before = reader.requests
    assert np.array_equal(cold.sample(0).condition, first.condition)
    assert reader.requests == before
    last_part_may_come.set()
    assert same(cold, dataset)
    wait_for_copies(shard_folder(str(tmp_path / "cache")), 15)


def test_a_disk_that_gets_full_loses_copies_of_other_datasets_first_then_does_without(
    dataset: Dataset, shards: str, limits: Limits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = shard_folder(str(tmp_path / "cache"))
    cache.mkdir(parents=True, exist_ok=True)
    foreign = cache / f"{'0' * 64}.safetensors"
    foreign.write_bytes(b"of another dataset")
    free = {True: 2 * SPARE_BYTES, False: 0}
    usage = shutil.disk_usage(cache)
    # The disk is full as long as the other copy is there.
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=free[not foreign.exists()]))
    assert same(remote(shards, limits, cache)[0], dataset)
    wait_for_copies(cache, 15)
    assert not foreign.exists()
    for path in cache.iterdir():
        path.unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=0))
    full, reader = remote(shards, limits, cache)
    assert same(full, dataset)
    assert same(full, dataset)
    assert reader.requests >= 2 * 40
    assert not list(cache.iterdir())


def test_copies_leave_a_share_of_the_disk_free(
    dataset: Dataset, shards: str, limits: Limits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(total=100 * SPARE_BYTES, free=15 * SPARE_BYTES)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    without, reader = remote(shards, limits, shard_folder(str(tmp_path / "without")), free_ratio=0.2)
    assert same(without, dataset)
    assert same(without, dataset)
    assert reader.requests >= 2 * 40
    remote(shards, limits, shard_folder(str(tmp_path / "with")), free_ratio=0.1)[0].samples(range(len(dataset)))
    wait_for_copies(shard_folder(str(tmp_path / "with")), 15)


def test_two_jobs_of_one_node_fetch_a_shard_once(dataset: Dataset, shards: str, limits: Limits, tmp_path: Path) -> None:
    cache = shard_folder(str(tmp_path / "cache"))
    one, _ = remote(shards, limits, cache)
    header = source_of(one).place("condition", 0)[0]
    cache.mkdir(parents=True, exist_ok=True)
    partial = cache / f".{header.sha256}.partial"
    with partial.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(b"by the other job")
        held.flush()
        assert same(one, dataset)
        wait_for_copies(cache, 14)
        assert partial.read_bytes() == b"by the other job"
    assert same(one, dataset)  # the other job died: this one fetches it after all
    wait_for_copies(cache, 15)


def test_a_run_on_shards_in_a_bucket_gives_the_same_bits(
    world: World, shards: str, s3_run: str, tmp_path: Path
) -> None:
    local = tmp_path / "run"
    assert attempt(config_for(world, local)).code == 0
    config = config_for(world, s3_run, data__train_manifests=[shards], data__cache_folder=str(tmp_path / "cache"))
    ended = attempt(config)
    assert ended.code == 0, ended.error
    assert state_of(newest(s3_run)) == state_of(newest(local))
