"""Copies on the node: verified, of this user alone, and never a reason to fail."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from indextts_job.hashing import integrity_hash
from indextts_job.storage import node_cache
from indextts_job.storage.node_cache import (
    ABANDONED_S,
    FORGOTTEN_AFTER_S,
    Copier,
    NodeCache,
    Share,
    shard_folder,
    through,
)
from indextts_job.storage.remote_files import Bytes
from tests.support.waiting import wait_until

CONTENT = b"some bytes"
NAME = integrity_hash(CONTENT)


class Source:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> Bytes:
        self.asked += 1
        return np.frombuffer(CONTENT, np.uint8).copy()


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_what_was_fetched_is_not_fetched_again_by_this_or_another_process(tmp_path: Path) -> None:
    source = Source()
    for cache in (NodeCache(tmp_path, "run"), NodeCache(tmp_path, "run")):
        assert through(cache, NAME, len(CONTENT), source).tobytes() == CONTENT
    assert source.asked == 1
    assert through(NodeCache(tmp_path, "other"), NAME, len(CONTENT), source).tobytes() == CONTENT
    assert through(None, NAME, len(CONTENT), source).tobytes() == CONTENT
    assert source.asked == 3


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], CONTENT + b"x", b"Some bytes"])
def test_a_damaged_copy_is_removed_and_made_again(tmp_path: Path, damage: bytes) -> None:
    source, cache = Source(), NodeCache(tmp_path, "run")
    through(cache, NAME, len(CONTENT), source)
    (path,) = files_in(tmp_path)
    path.write_bytes(damage)
    assert through(cache, NAME, len(CONTENT), source).tobytes() == CONTENT
    assert source.asked == 2
    assert path.read_bytes() == CONTENT


def test_files_belong_to_their_version(tmp_path: Path) -> None:
    source, cache = Source(), NodeCache(tmp_path, "inputs")
    assert isinstance(fetched := cache.file("0a", len(CONTENT), source), np.ndarray)
    assert fetched.tobytes() == CONTENT
    wait_until(lambda: isinstance(cache.file("0a", len(CONTENT), source), Path), "the copy")
    asked = source.asked
    found = cache.file("0a", len(CONTENT), source)
    assert isinstance(found, Path)
    assert found.read_bytes() == CONTENT
    (copy,) = files_in(tmp_path)
    assert source.asked == asked
    assert cache.file("0b", len(CONTENT), source) is not None
    assert source.asked == asked + 1
    copy.write_bytes(b"Some bytes")
    assert isinstance(cache.file("0a", len(CONTENT), source), np.ndarray)
    assert source.asked == asked + 2


def test_the_copy_of_a_file_is_there_for_the_other_processes_of_the_node(tmp_path: Path) -> None:
    source = Source()
    first, second = (NodeCache(tmp_path, "inputs", share=Share(index, 2)) for index in range(2))
    assert isinstance(first.file("0a", len(CONTENT), source), np.ndarray)
    assert isinstance(second.file("0a", len(CONTENT), source), Path)
    assert source.asked == 1


def test_a_folder_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    source = Source()
    folder = tmp_path / f"user-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    cache = NodeCache(tmp_path, "run")
    for _ in range(2):
        assert through(cache, NAME, len(CONTENT), source).tobytes() == CONTENT
    assert source.asked == 2
    assert cache.file("0a", len(CONTENT), source) is None
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("at", ["user", "run"])
def test_a_link_or_a_file_in_place_of_a_folder_is_not_followed(tmp_path: Path, at: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    user = tmp_path / "cache" / f"user-{os.getuid()}"
    user.parent.mkdir()
    if at == "user":
        user.symlink_to(elsewhere)
    else:
        user.mkdir(mode=0o700)
        (user / "run").write_bytes(b"")
    source = Source()
    assert through(NodeCache(tmp_path / "cache", "run"), NAME, len(CONTENT), source).tobytes() == CONTENT
    assert files_in(elsewhere) == []


def test_a_full_disk_costs_reads_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = Source(), NodeCache(tmp_path, "run")
    through(cache, NAME, len(CONTENT), source)
    monkeypatch.setattr(node_cache, "SPARE_BYTES", 2**60)
    other = b"other bytes"
    cache.write(integrity_hash(other), other)
    assert cache.read(integrity_hash(other), len(other)) is None
    assert cache.file("0a", len(CONTENT), source) is None
    # What is there already is still read.
    assert through(cache, NAME, len(CONTENT), source).tobytes() == CONTENT
    assert source.asked == 1
    assert len(files_in(tmp_path)) == 1


def test_one_process_cleans_up_for_all_of_its_node(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, "run")
    contents = [f"{number}".encode() for number in range(3)]
    for content in contents:
        cache.write(integrity_hash(content), content)
    killed, writing = (files_in(tmp_path)[0].parent / f".{name}.part" for name in ("killed", "writing"))
    for path in (killed, writing):
        path.write_bytes(b"half")
    long_ago = time.time() - ABANDONED_S - 60
    os.utime(killed, (long_ago, long_ago))
    NodeCache(tmp_path, "run", share=Share(1, 2)).keep_only(())
    assert len(files_in(tmp_path)) == 5
    cache.keep_only({integrity_hash(contents[1])})
    # Another rank may be writing at this moment, and would make no further copies without its part.
    assert {path.read_bytes() for path in files_in(tmp_path)} == {contents[1], b"half"}
    assert not killed.exists()


def test_copies_that_nothing_uses_any_more_are_forgotten(tmp_path: Path) -> None:
    used, old = NodeCache(tmp_path, "run-used"), NodeCache(tmp_path, "run-old")
    for cache in (used, old):
        cache.write(NAME, CONTENT)
    shards = shard_folder(str(tmp_path))
    shards.mkdir()
    (shards / "a.safetensors").write_bytes(b"evicted only where space is needed")
    long_ago = time.time() - FORGOTTEN_AFTER_S - 60
    for path in files_in(tmp_path):
        os.utime(path, (long_ago, long_ago))
    assert used.read(NAME, len(CONTENT)) is not None  # a use
    NodeCache(tmp_path, "inputs").forget_the_old()
    assert list(shards.iterdir())
    assert used.read(NAME, len(CONTENT)) is not None
    assert old.read(NAME, len(CONTENT)) is None


def test_a_process_waits_for_the_one_that_reads_the_same_and_takes_its_copy(tmp_path: Path) -> None:
    first, second = (NodeCache(tmp_path, "run", share=Share(index, 2)) for index in range(2))
    entered, go = threading.Event(), threading.Event()

    def slow() -> Bytes:
        entered.set()
        assert go.wait(30)
        return np.frombuffer(CONTENT, np.uint8).copy()

    reader = threading.Thread(target=through, args=(first, NAME, len(CONTENT), slow))
    reader.start()
    assert entered.wait(30)
    source, found = Source(), list[Bytes]()
    waiter = threading.Thread(target=lambda: found.append(through(second, NAME, len(CONTENT), source)))
    waiter.start()
    go.set()
    reader.join(30)
    waiter.join(30)
    assert found[0].tobytes() == CONTENT
    assert source.asked == 0


@pytest.mark.skipif(os.getuid() != 0, reason="needs to make files of another user")
def test_a_file_of_another_user_is_no_copy_whoever_owns_the_folder_above(tmp_path: Path) -> None:
    """Somebody who owns the folder for all may put another one in the place of this user's."""
    source, cache = Source(), NodeCache(tmp_path, "inputs")
    through(cache, NAME, len(CONTENT), source)
    cache.write("0" * 32, b"")
    forged = files_in(tmp_path)[0].parent
    planted = b"planted"
    for name in (integrity_hash(planted), f"0a-{integrity_hash(planted)}"):
        (forged / name).write_bytes(planted)
        os.chown(forged / name, 12345, 12345)
    assert cache.read(integrity_hash(planted), len(planted)) is None
    assert isinstance(cache.file("0a", len(planted), source), np.ndarray)
    assert source.asked == 2


def test_a_copier_whose_memory_changes_makes_no_copy_that_is_used(tmp_path: Path) -> None:
    cache, memory = NodeCache(tmp_path, "run"), bytearray(CONTENT)
    copier = Copier(cache)
    copier.add(integrity_hash(b"what it was before"), memory)
    copier.wait(30)
    assert len(files_in(tmp_path)) == 1
    assert cache.read(integrity_hash(b"what it was before"), len(CONTENT)) is None
    copier.add(NAME, memory)
    copier.wait(30)
    assert cache.read(NAME, len(CONTENT)) is not None
