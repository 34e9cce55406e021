"""The storage verbs and the store, over HTTP against real servers."""

import logging
import random
import threading
import time
from pathlib import Path

import pytest

from indextts_job.checkpoint.attempt_record import AttemptRecord
from indextts_job.checkpoint.fence import Fence
from indextts_job.checkpoint.removal import retain
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.errors import AccessRefusedError, SupersededError, UnavailableError
from indextts_job.storage import files
from indextts_job.storage.config import StorageConfig
from indextts_job.storage.remote_files import PART_BYTES
from indextts_job.storage.remote_storage import RemoteStorage, open_storage
from tests.support.servers import Server, client_environment, free_ports, running, seaweedfs
from tests.support.stores import reopened, save


def test_files_are_written_replaced_listed_and_deleted(s3_run: str) -> None:
    storage = open_storage(s3_run)
    assert storage.list("folder") == {}
    storage.write("folder/a", b"one")
    storage.write("folder/a", b"three")
    storage.write("folder/b", b"x" * 70_000_000)  # a multipart upload
    listed = storage.list("folder")
    assert {name: file.size_bytes for name, file in listed.items()} == {"a": 5, "b": 70_000_000}
    assert all(0 <= file.age_s < 600 for file in listed.values())
    assert storage.read("folder/a") == b"three"
    assert storage.read("folder/b") == b"x" * 70_000_000
    for name in ("a", "b", "b"):
        storage.delete(f"folder/{name}")
    assert storage.list("folder") == {}
    with pytest.raises(FileNotFoundError):
        storage.read("folder/a")


def test_a_large_file_is_read_in_parts_as_far_as_it_goes(s3_run: str) -> None:
    storage = open_storage(s3_run)
    content = random.Random(0).randbytes(2 * PART_BYTES + 1)
    storage.write("large", content)
    assert storage.read_large("large", len(content)).tobytes() == content
    assert storage.read_large("large", len(content) + 2 * PART_BYTES).tobytes() == content
    assert files.read_bytes(f"{s3_run}/large") == content
    storage.write("empty", b"")
    assert files.read_bytes(f"{s3_run}/empty") == b""
    for read in (lambda: storage.read_large("gone", 5), lambda: files.read_bytes(f"{s3_run}/gone")):
        with pytest.raises(FileNotFoundError):
            read()


def test_of_racing_creators_exactly_one_wins(s3_run: str) -> None:
    storage = open_storage(s3_run)
    assert storage.excludes_creators()
    assert storage.list("probes") == {}
    won: list[int] = []

    def create(number: int) -> None:
        try:
            open_storage(s3_run).create("attempts/0001.json", b"%d" % number)
        except FileExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read("attempts/0001.json") == b"%d" % won[0]


def test_a_create_whose_answer_was_lost_counts_as_done(s3_run: str) -> None:
    storage = open_storage(s3_run)
    storage.create("a", b"mine")
    storage.create("a", b"mine")  # the same call again, as a retry would make it
    with pytest.raises(FileExistsError):
        storage.create("a", b"theirs")


def test_attempts_fence_each_other(s3_run: str) -> None:
    first, second = Fence(open_storage(s3_run), AttemptRecord()), Fence(open_storage(s3_run), AttemptRecord())
    second.check()
    with pytest.raises(SupersededError, match="attempt 2"):
        first.check()


def test_checkpoints_are_committed_verified_and_retained(s3_run: str) -> None:
    store = CheckpointStore(open_storage(s3_run))
    for step in range(1, 6):
        save(store, step)
        retain(store, 2)
    other = reopened(store)
    assert [name.step for name in other.names()] == [4, 5]
    for name in other.names():
        other.verify(other.manifest(name))
    named = {key for name in other.names() for key in other.manifest(name).objects}
    kept = {f"{folder}/{file}" for folder in ("objects", "shared") for file in other.storage.list(folder)}
    assert kept == named


def test_a_store_that_ignores_conditions_is_found_out_and_said_once(
    lawless_run: str, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_storage(lawless_run)
    assert not storage.excludes_creators()
    with caplog.at_level(logging.WARNING):
        first = Fence(storage, AttemptRecord(node="a"))
        second = Fence(open_storage(lawless_run), AttemptRecord(node="b"))
    assert (first.attempt, second.attempt) == (1, 2)
    assert sum("ignores conditional writes" in record.message for record in caplog.records) == 2
    with pytest.raises(SupersededError):
        first.check()
    store = CheckpointStore(storage)
    name = save(store, 1)
    store.verify(store.manifest(name))


def test_logs_reach_the_bucket_while_they_grow(s3_run: str) -> None:
    storage = RemoteStorage(s3_run, StorageConfig(log_interval_seconds=0.05))
    storage.append("events/a.jsonl", b"1\n")
    reader = open_storage(s3_run)
    deadline = time.monotonic() + 30
    while not reader.list("events"):
        assert time.monotonic() < deadline
    storage.append("events/a.jsonl", b"2\n")
    storage.flush()
    assert reader.read("events/a.jsonl") == b"1\n2\n"


def test_unfinished_uploads_are_aborted_when_old(s3_run: str) -> None:
    storage = RemoteStorage(s3_run, StorageConfig())
    key = f"{storage._root}/objects/dangling".partition("/")[2]
    storage._filesystem.fsspec.call_s3("create_multipart_upload", Bucket="bucket", Key=key)

    def dangling() -> list[str]:
        return [
            upload["Key"]
            for upload in storage._filesystem.fsspec.list_multipart_uploads("bucket")
            if upload["Key"] == key
        ]

    assert dangling()
    storage.remove_temporary("objects", older_than_s=3600)
    assert dangling()
    storage.remove_temporary("objects", older_than_s=-10)
    assert not dangling()


def test_a_listing_tells_versions_of_one_size_apart(s3_run: str) -> None:
    """Audio that was replaced is read again, whatever the resolution of a store's time stamps is."""
    storage = open_storage(s3_run)
    assert files.versions(f"{s3_run}/audio") == {}
    for name in ("a.wav", "b.wav", "below/c.wav"):
        storage.write(f"audio/{name}", b"12345")
    before = files.versions(f"{s3_run}/audio")
    assert before.keys() == {"a.wav", "b.wav"}
    assert all(version.startswith("5 ") for version in before.values())
    storage.write("audio/a.wav", b"54321")
    after = files.versions(f"{s3_run}/audio")
    assert after["a.wav"] != before["a.wav"]
    assert after["b.wav"] == before["b.wav"]


def test_refused_credentials_are_not_retried(s3_run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    storage = open_storage(s3_run)
    for operation in (lambda: storage.list("x"), lambda: storage.write("x", b""), lambda: storage.read("x")):
        with pytest.raises(AccessRefusedError) as caught:
            operation()
        assert caught.value.exit_code == 77


def test_an_unreachable_endpoint_is_tried_with_growing_pauses_then_given_up(
    s3_run: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    pauses: list[float] = []
    storage = RemoteStorage(s3_run, StorageConfig(retry_seconds=6.0), sleep=pauses.append)
    with pytest.raises(UnavailableError) as caught:
        storage.list("checkpoints")
    assert caught.value.exit_code == 69
    assert 0 < sum(pauses) <= 6.0  # the tries themselves take of the time too
    assert sum("Trying again" in record.message for record in caplog.records) == len(pauses)


def test_a_server_that_is_killed_and_comes_back_loses_nothing(
    tmp_path: Path, reach: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(seaweedfs(tmp_path / "weed")) as server:
        for name, value in client_environment(server).items():
            monkeypatch.setenv(name, value)
        storage = RemoteStorage("s3://bucket/run", StorageConfig(retry_seconds=60), sleep=lambda _s: _revive(server))
        store = CheckpointStore(storage)
        first = save(store, 1)
        server.kill()
        second = save(store, 2)
        for checkpoint in (first, second):
            reopened(store).verify(store.manifest(checkpoint))


def _revive(server: Server) -> None:
    if server.process is None or server.process.poll() is not None:
        server.start()


def test_a_folder_of_ten_thousand_files_is_listed_whole(s3_run: str) -> None:
    storage = RemoteStorage(s3_run, StorageConfig())
    root = f"{storage._root}/checkpoints"
    names = [f"step-{step:08d}-attempt-0001-from-00000000.json" for step in range(10_000)]
    storage._filesystem.fsspec.pipe({f"{root}/{name}": b"{}" for name in names})
    assert sorted(storage.list("checkpoints")) == names
    assert len(CheckpointStore(storage).names()) == 10_000


def test_a_bucket_that_keeps_versions_works(s3_run: str) -> None:
    storage = RemoteStorage(s3_run, StorageConfig())
    storage._filesystem.call("call_s3", "create_bucket", Bucket="versions")
    enabled = {"Status": "Enabled"}
    storage._filesystem.call("call_s3", "put_bucket_versioning", Bucket="versions", VersioningConfiguration=enabled)
    store = CheckpointStore(RemoteStorage(s3_run.replace("//bucket", "//versions"), StorageConfig()))
    for step in range(1, 5):
        save(store, step)
        retain(store, 2)
    assert [name.step for name in reopened(store).names()] == [3, 4]
    for name in reopened(store).names():
        store.verify(store.manifest(name))
