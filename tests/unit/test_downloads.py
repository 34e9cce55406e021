"""Copies on a node: what dead jobs left goes, what live ones use stays, and a file that vanishes stops nothing."""

import fcntl
import hashlib
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from indextts_job.data.downloads import Downloads, _Download, copy_path, evict_oldest, remove_abandoned
from indextts_job.data.shard_index import Shard
from tests.support.waiting import wait_until

CONTENT = b"rows of a shard" * 1000
SHARD = Shard(
    name="emotion-00000.safetensors",
    rows=1,
    size_bytes=len(CONTENT),
    data_start=8,
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


def fetch(_shard: Shard, start: int, stop: int) -> bytes:
    return CONTENT[start:stop]


def test_half_copies_of_dead_jobs_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    dead, alive, whole = tmp_path / ".dead.partial", tmp_path / ".alive.partial", tmp_path / "whole.safetensors"
    for path in (dead, alive, whole):
        path.write_bytes(b"x")
    with alive.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        remove_abandoned(tmp_path)
        assert not dead.exists()
        assert alive.exists()
    assert whole.exists()
    remove_abandoned(tmp_path)
    assert not alive.exists()
    remove_abandoned(tmp_path / "not there")


def test_a_copy_that_another_process_evicts_in_the_same_moment_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")  # listed, and not there when it is looked at
    assert not evict_oldest(tmp_path, {"used"})
    for age, name in enumerate(("used", "old", "new")):
        (tmp_path / f"{name}.safetensors").write_bytes(b"x")
        os.utime(tmp_path / f"{name}.safetensors", (age, age))
    assert evict_oldest(tmp_path, {"used"})
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors") if path.exists()) == ["new", "used"]


def test_a_shard_is_fetched_over_what_a_dead_job_left(tmp_path: Path) -> None:
    (tmp_path / f".{SHARD.sha256}.partial").write_bytes(b"half")
    (tmp_path / ".of-another-dataset.partial").write_bytes(b"half")
    Downloads(tmp_path, fetch, 0.0).want(SHARD)
    wait_until(copy_path(tmp_path, SHARD).exists, "the copy is whole")
    assert copy_path(tmp_path, SHARD).read_bytes() == CONTENT
    assert not list(tmp_path.glob(".*.partial"))


def test_a_link_in_a_shared_folder_leads_to_no_other_file(tmp_path: Path) -> None:
    precious, folder = tmp_path / "precious", tmp_path / "copies"
    precious.write_bytes(b"mine")
    folder.mkdir()
    (folder / f".{SHARD.sha256}.partial").symlink_to(precious)
    remove_abandoned(folder)
    with pytest.raises(OSError, match="symbolic link"):
        _Download(SHARD, folder / f".{SHARD.sha256}.partial")
    assert precious.read_bytes() == b"mine"


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"x", CONTENT[:-1]])
def test_a_copy_with_another_hash_is_no_copy(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    downloads = Downloads(tmp_path, lambda _shard, start, stop: content[start:stop], 0.0)
    downloads.want(SHARD)
    wait_until(lambda: "no further copies" in caplog.text, "the copy is given up")
    assert "does not have the hash" in caplog.text
    assert not copy_path(tmp_path, SHARD).exists()
    assert not list(tmp_path.iterdir())
    assert not downloads.wait_for(SHARD, 0, 10)


def test_a_download_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, leaves = threading.Event(), threading.Event()

    def hang(_shard: Shard, start: int, stop: int) -> bytes:
        asked.set()
        leaves.wait(30)
        return CONTENT[start:stop]

    downloads = Downloads(tmp_path, hang, 0.0)
    downloads.want(SHARD)
    assert asked.wait(10)
    assert downloads.soon(SHARD)
    monkeypatch.setattr("indextts_job.data.downloads.LONGEST_WAIT_S", 0.0)
    assert not downloads.wait_for(SHARD, 0, 10)
    assert not downloads.soon(SHARD)
    leaves.set()


def test_a_row_in_two_parts_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indextts_job.data.downloads.PART_BYTES", 1000)
    download = _Download(SHARD, tmp_path / ".partial")
    for start in range(0, 4000, 1000):
        download.parts[start] = CONTENT[start : start + 1000]
    for start, stop in ((0, 1000), (10, 20), (990, 1010), (999, 3001), (3999, 4000), (1000, 2000)):
        found = download.range(start, stop)
        assert found is not None
        assert bytes(found) == CONTENT[start:stop]
    assert download.range(3999, 4001) is None
    assert not download.whole
    download.lock.close()


def test_shards_in_memory_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is begun only when there is room, and all become copies."""
    monkeypatch.setattr("indextts_job.data.downloads.MEMORY_BYTES", len(CONTENT) * 2)
    contents = {name: bytes([name]) * len(CONTENT) for name in range(6)}
    shards = [
        replace(SHARD, name=str(name), sha256=hashlib.sha256(content).hexdigest()) for name, content in contents.items()
    ]
    most = 0

    def fetch_some(shard: Shard, start: int, stop: int) -> bytes:
        nonlocal most
        most = max(most, len(downloads._running))
        return contents[int(shard.name)][start:stop]

    downloads = Downloads(tmp_path, fetch_some, 0.0)
    for shard in shards:
        downloads.want(shard)
    for shard in shards:
        wait_until(copy_path(tmp_path, shard).exists, "the copy is whole")
        assert copy_path(tmp_path, shard).read_bytes() == contents[int(shard.name)]
    assert 1 <= most <= 2
