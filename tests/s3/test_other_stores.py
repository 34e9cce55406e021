"""Stores with ideas of their own: a run begins, stops, goes on and ends on each of them with the same bits.

rclone ignores conditions of writes, knows no list of unfinished uploads, and answers a ranged read with the checksum of
the whole object; moto is Amazon's interface in memory.
"""

import random
import signal
from pathlib import Path

import fsspec
import pytest

from indextts_job.checkpoint.manifest import file_name
from indextts_job.checkpoint.retention import FINAL
from indextts_job.cli import main
from indextts_job.demo.world import World
from indextts_job.storage.remote_storage import open_storage
from tests.support.attempts import attempt
from tests.support.runs import config_for, newest, state_of, store_of
from tests.support.warm_parent import Interruption, WarmParent

KEYS: dict[str, object] = {"schedule__max_steps": 10, "storage__retry_seconds": 10}


@pytest.fixture(params=["s3_run", "lawless_run", "mocked_run"], ids=["SeaweedFS", "rclone", "moto"])
def run(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def test_a_run_stops_goes_on_and_ends_with_the_same_bits(world: World, run: str, tmp_path: Path, log: Path) -> None:
    whole = tmp_path / "whole"
    assert attempt(config_for(world, whole, **KEYS)).code == 0
    config = config_for(world, run, **KEYS)
    with WarmParent() as parent:  # a new one, which knows this store's address
        assert parent.attempt(config, log, Interruption(signal.SIGTERM, 90)).code == 75
        assert parent.attempt(config, log, Interruption(signal.SIGKILL, 110)).code == 137
    ended = attempt(config)
    assert ended.code == 0, ended.error
    last = newest(run)
    assert FINAL in last.name.tags
    assert state_of(last) == state_of(newest(whole))
    store_of(run).verify(last)
    assert main(["checkpoints", "list", run, "--verify"]) == 0
    assert main(["export", run, "--output-dir", str(tmp_path / "export")]) == 0


def test_where_no_upload_is_unfinished_there_is_nothing_to_remove(run: str) -> None:
    """Some stores answer that there is no such upload, as if one had been asked for."""
    storage = open_storage(run)
    storage.write("objects/a", b"1")
    storage.remove_temporary("objects", older_than_s=-10)
    assert storage.list("objects").keys() == {"a"}


DAMAGES = ("removed", "emptied", "cut", "flipped", "null", "list")


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_object_of_a_run_in_a_bucket_costs_steps_at_most(
    world: World, s3_run: str, tmp_path: Path, log: Path, kind: str
) -> None:
    """Every folder of the run in turn, one of its objects each; the damage suite has them all on a local disk."""
    whole = tmp_path / "whole"
    assert attempt(config_for(world, whole, **KEYS)).code == 0
    config = config_for(world, s3_run, **KEYS)
    with WarmParent() as parent:
        assert parent.attempt(config, log, Interruption(signal.SIGTERM, 120)).code == 75
    filesystem, root = fsspec.core.url_to_fs(s3_run)
    chance = random.Random(kind)
    # All of it in one checkpoint, which must not be the only one that is left: an object that an older one has too is
    # spared. Where every checkpoint is damaged, the run ends with 65.
    last, *older = (store_of(s3_run).manifest(name) for name in reversed(store_of(s3_run).names()))
    assert older
    its_own = set(last.objects) - {key for manifest in older for key in manifest.objects}
    for folder in ("checkpoints", "objects", "attempts", "events", "samples", ""):
        there = [e["name"] for e in filesystem.ls(f"{root}/{folder}".rstrip("/"), detail=True) if e["type"] == "file"]
        if folder in ("checkpoints", "objects"):
            names = {file_name(last.name)} if folder == "checkpoints" else {key.rpartition("/")[2] for key in its_own}
            there = [path for path in there if path.rpartition("/")[2] in names]
        path = chance.choice(sorted(there))
        content = filesystem.cat_file(path)
        damaged = {
            "emptied": b"",
            "cut": content[: len(content) // 2],
            "flipped": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
            "null": b"null",
            "list": b"[]",
        }
        if kind == "removed":
            filesystem.rm_file(path)
        else:
            filesystem.pipe_file(path, damaged[kind])
    ended = attempt(config)
    assert ended.code == 0, ended.error
    assert state_of(newest(s3_run)) == state_of(newest(whole))
    store_of(s3_run).verify(newest(s3_run))
