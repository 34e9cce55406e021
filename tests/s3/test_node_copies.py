"""What is on a node already is not read from the bucket: by the next attempt, and by the other ranks."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import fsspec
import pytest
import yaml

from indextts_job.demo.world import World, WorldSize, make_world
from tests.s3.conftest import Connect
from tests.support.attempts import attempt
from tests.support.fault_proxy import proxy
from tests.support.runs import config_for, newest
from tests.support.servers import Server
from tests.support.waiting import wait_until
from tests.support.warm_parent import REPOSITORY


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base of more than one part, so that it counts as large."""
    return make_world(tmp_path_factory.mktemp("wide"), WorldSize(samples=40, width=256, layers=2, heads=4))


class Read:
    """Counts the bytes of objects and of the base that are read through a proxy."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()

    def __call__(self, _number: int, method: str, path: str) -> str:
        if method == "GET":
            for kind in ("objects", "shared", "gpt.pth"):
                self.requests[kind] += f"/{kind}" in path
        return ""


def uploaded(world: World, url: str) -> str:
    filesystem, path = fsspec.core.url_to_fs(f"{url}-base/gpt.pth")
    filesystem.pipe_file(path, world.base_checkpoint.read_bytes())
    return f"{url}-base/gpt.pth"


def test_a_second_attempt_on_a_node_reads_neither_checkpoint_nor_base(
    wide: World, s3_run: str, seaweed: Server, connect: Connect, tmp_path: Path
) -> None:
    base = uploaded(wide, s3_run)
    keys = {
        "inputs__base_checkpoint": base,
        "storage__node_copies": True,
        "data__cache_folder": str(tmp_path / "cache"),
        "resume__accept": ["schedule.max_steps"],
        "validation__interval_steps": 0,
    }
    read = Read()
    with proxy(seaweed.port, read) as (url, _faults):
        connect(url)
        assert attempt(config_for(wide, s3_run, schedule__max_steps=2, **keys)).code == 0
        assert read.requests["gpt.pth"] > 1
        read.requests.clear()
        # The run was complete, so its copies are gone: read once, and kept.
        ended = attempt(config_for(wide, s3_run, schedule__max_steps=3, **keys))
        assert ended.code == 0, ended.error
        assert read.requests["objects"] > 0
        read.requests.clear()
        other = f"{s3_run}-other"
        assert attempt(config_for(wide, other, schedule__max_steps=1, **keys)).code == 0
        assert read.requests["gpt.pth"] == 0  # the base is on the node, whatever the run


def test_an_interrupted_attempt_leaves_its_checkpoint_to_the_next_one_on_its_node(
    wide: World, s3_run: str, seaweed: Server, connect: Connect, tmp_path: Path
) -> None:
    keys = {"storage__node_copies": True, "data__cache_folder": str(tmp_path / "cache"), "schedule__max_steps": 5}
    read = Read()
    with proxy(seaweed.port, read) as (url, _faults):
        connect(url)
        assert attempt(config_for(wide, s3_run, **keys), stop_at=3).code == 75
        wanted = {stored.xxh3 for key, stored in newest(s3_run).objects.items() if key.startswith("objects/")}
        # A stop does not wait for the last of them, and this process goes on here.
        wait_until(lambda: wanted <= {path.name for path in tmp_path.rglob("*")}, "the copies")
        read.requests.clear()
        ended = attempt(config_for(wide, s3_run, **keys))
        assert ended.code == 0, ended.error
        assert "resume      checkpoint found" in ended.output
        assert read.requests["objects"] == 0
    connect(seaweed.url)
    local = tmp_path / "undisturbed"
    assert attempt(config_for(wide, local, schedule__max_steps=5)).code == 0
    assert newest(local).objects.keys() == newest(s3_run).objects.keys()


def on_ranks(folder: Path, world: World, run: str, ranks: int, **keys: object) -> None:
    config = folder / f"{ranks}.yaml"
    document = config_for(world, run, hardware__processes=ranks, **keys).to_json()
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    command = [sys.executable, "-m", "indextts_job", "train", str(config)]
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_ranks_of_a_node_read_a_base_and_a_checkpoint_once_together(
    wide: World, s3_run: str, seaweed: Server, connect: Connect, tmp_path: Path
) -> None:
    keys: dict[str, object] = {
        "inputs__base_checkpoint": uploaded(wide, s3_run),
        "storage__node_copies": True,
        "resume__accept": ["schedule.max_steps"],
        "validation__interval_steps": 0,
    }
    read = Read()
    with proxy(seaweed.port, read) as (url, _faults):
        connect(url)
        counts: dict[int, int] = {}
        for ranks in (1, 3):
            run = f"{s3_run}-{ranks}"
            for steps in (1, 2):
                read.requests.clear()
                cache = tmp_path / f"cache-{ranks}-{steps}"  # another node at every start
                on_ranks(tmp_path, wide, run, ranks, schedule__max_steps=steps, data__cache_folder=str(cache), **keys)
                if steps == 1:
                    counts[ranks] = read.requests["gpt.pth"]
                    objects = [key for key in newest(run).objects if key.startswith("objects/")]
                else:
                    # Behind the last commit nothing of them is read again.
                    assert read.requests["objects"] == len(objects)
    assert counts[1] > 1
    assert counts[3] == counts[1]
