"""A line that fails, lies and breaks between job and bucket: the run ends right, no wrong byte is accepted."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from indextts_job.data.dataset import Limits
from indextts_job.data.sharding import write_shards
from indextts_job.data.sources import load_dataset
from indextts_job.demo.world import World
from indextts_job.errors import DataError
from indextts_job.model.config import gpt_config
from indextts_job.storage.files import read_yaml
from tests.s3.conftest import Connect
from tests.s3.test_runs_in_a_bucket import bucket_config, bucket_world  # noqa: F401  # a fixture
from tests.support.attempts import attempt
from tests.support.fault_proxy import Fault, proxy
from tests.support.runs import config_for, newest, state_of, store_of
from tests.support.servers import Server

KINDS = ("500", "503", "reset", "truncate", "lost answer", "hang", "trickle")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses: the order of things is tested, not the length of a pause."""
    monkeypatch.setattr("indextts_job.storage.patience.FIRST_DELAY_S", 0.01)
    monkeypatch.setattr("indextts_job.storage.patience.LONGEST_DELAY_S", 0.05)


@pytest.fixture
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kind of fault; nothing but a timeout ends a hang, so that one comes with short ones."""
    if request.param == "hang":
        monkeypatch.setattr("indextts_job.storage.files.READ_TIMEOUT_S", 2)
        monkeypatch.setattr("indextts_job.storage.remote_files.CALL_TIMEOUT_S", 2.0)
    return str(request.param)


def now_and_then(kind: str) -> Fault:
    """A fault in every twelfth request; in every thirtieth where it costs a timeout or several readings."""
    every = 20 if kind in ("hang", "corrupt") else 12
    return lambda number, _method, _path: kind if number % every == 0 else ""


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_one_request_in_twelve_fails_and_the_run_ends_with_the_same_bits(
    world: World,
    bucket_world: str,  # noqa: F811
    s3_run: str,
    seaweed: Server,
    connect: Connect,
    kind: str,
) -> None:
    local = "memory://undisturbed-for-faults"
    assert attempt(config_for(world, local, schedule__max_steps=8)).code == 0
    with proxy(seaweed.port, now_and_then(kind)) as (url, faults):
        connect(url)
        ended = attempt(bucket_config(world, bucket_world, s3_run, schedule__max_steps=8))
    assert ended.code == 0, ended.error
    assert Counter(faults)[kind] >= 5
    connect(seaweed.url)
    assert state_of(newest(s3_run)) == state_of(newest(local))
    store_of(s3_run).verify(newest(s3_run))


@pytest.mark.parametrize("kind", [*KINDS, "corrupt"], indirect=True)
def test_sharding_and_feeding_over_a_bad_line_give_the_same_bytes(
    world: World, s3_run: str, seaweed: Server, tmp_path: Path, connect: Connect, kind: str
) -> None:
    limits = Limits(gpt_config(read_yaml(str(world.model_config), "", ""), ""), 217)
    local = load_dataset([str(world.train_manifest)], limits, skip_bad_samples=False)
    with proxy(seaweed.port, now_and_then(kind)) as (url, faults):
        connect(url)
        write_shards(local, f"{s3_run}-shards", lambda _done, _total: None, shard_bytes=3 * 32 * 32 * 4)
        sharded = None
        while sharded is None:  # a corrupted index is refused, and read again by whoever starts again
            try:
                cache = str(tmp_path / "cache")
                sharded = load_dataset([f"{s3_run}-shards"], limits, skip_bad_samples=False, cache_folder=cache)
            except DataError:
                assert kind == "corrupt"
        for one, other in zip(local.samples(range(40)), sharded.samples(range(40)), strict=True):
            assert np.array_equal(one.condition, other.condition)
            assert np.array_equal(one.codes, other.codes)
    assert len(faults) >= 2
    assert sharded.fingerprint == local.fingerprint


@pytest.mark.parametrize(("kind", "code"), [("skew", 69), ("expired", 77), ("denied", 77), ("503", 69)])
def test_a_store_that_refuses_from_the_middle_on_ends_the_attempt_with_its_code(
    world: World, s3_run: str, seaweed: Server, connect: Connect, kind: str, code: int
) -> None:
    committed = False

    def after_the_first_checkpoint(_number: int, method: str, path: str) -> str:
        nonlocal committed
        refused = kind if committed else ""
        committed = committed or (method == "PUT" and "/checkpoints/step" in path)
        return refused

    keys = {"schedule__max_steps": 24, "checkpoint__interval_steps": 4}
    with proxy(seaweed.port, after_the_first_checkpoint) as (url, _faults):
        connect(url)
        ended = attempt(config_for(world, s3_run, storage__retry_seconds=0.2, **keys))
    assert ended.code == code
    assert "REFUSED" in ended.error.upper() or code == 69
    connect(seaweed.url)
    assert newest(s3_run).name.step == 4
    assert attempt(config_for(world, s3_run, **keys)).code == 0


def test_a_corrupted_answer_is_read_again_and_never_accepted(
    world: World, s3_run: str, seaweed: Server, tmp_path: Path, connect: Connect
) -> None:
    local = tmp_path / "run"
    assert attempt(config_for(world, local, schedule__max_steps=12)).code == 0
    assert attempt(config_for(world, s3_run, schedule__max_steps=8)).code == 0
    spoiled: set[str] = set()

    def corrupt_first_reading(_number: int, method: str, path: str) -> str:
        content = "/objects/" in path or "/checkpoints/step" in path
        if method != "GET" or not content or path in spoiled:
            return ""
        spoiled.add(path)
        return "corrupt"

    with proxy(seaweed.port, corrupt_first_reading) as (url, faults):
        connect(url)
        keys = {"schedule__max_steps": 12, "resume__accept": ["schedule.max_steps"]}
        ended = attempt(config_for(world, s3_run, **keys))
    assert ended.code == 0, ended.error
    assert len(faults) > 3
    assert "passed over" not in ended.output
    assert "step 8 of 12" in ended.output


def test_a_line_that_always_corrupts_ends_in_an_error_with_nothing_lost(
    world: World, s3_run: str, seaweed: Server, connect: Connect
) -> None:
    assert attempt(config_for(world, s3_run, schedule__max_steps=8)).code == 0
    before = store_of(s3_run).names()
    with proxy(seaweed.port, lambda _n, method, path: "corrupt" if method == "GET" and "/objects/" in path else "") as (
        url,
        _faults,
    ):
        connect(url)
        ended = attempt(config_for(world, s3_run, schedule__max_steps=8))
    assert ended.code == 65
    assert "Nothing was deleted" in ended.error
    connect(seaweed.url)
    assert store_of(s3_run).names() == before
    store_of(s3_run).verify(newest(s3_run))
