"""A line that fails, lies and breaks between job and bucket: the run ends right, no wrong byte is accepted."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from indextts_job.demo.world import World
from tests.s3.test_runs_in_a_bucket import bucket_config, bucket_world  # noqa: F401  # a fixture
from tests.support.attempts import attempt
from tests.support.fault_proxy import proxy
from tests.support.runs import config_for, newest, state_of, store_of
from tests.support.servers import Server

Connect = Callable[[str], None]
KINDS = ("500", "503", "reset", "truncate", "lost answer")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses: the order of things is tested, not the length of a pause."""
    monkeypatch.setattr("indextts_job.retry.FIRST_DELAY_S", 0.01)
    monkeypatch.setattr("indextts_job.retry.LONGEST_DELAY_S", 0.05)


@pytest.mark.parametrize("kind", KINDS)
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
    chance = random.Random(kind)
    with proxy(seaweed.port, lambda _n, _method, _path: kind if chance.random() < 1 / 12 else "") as (url, faults):
        connect(url)
        ended = attempt(bucket_config(world, bucket_world, s3_run, schedule__max_steps=8))
    assert ended.code == 0, ended.error
    assert Counter(faults)[kind] > 10
    connect(seaweed.url)
    assert state_of(newest(s3_run)) == state_of(newest(local))
    store_of(s3_run).verify(newest(s3_run))


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
