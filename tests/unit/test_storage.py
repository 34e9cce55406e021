"""Storage verbs on files and in memory, and the durability of local writes."""

import errno
import os
import stat
import uuid
from pathlib import Path

import pytest

from indextts_job.checkpoint.attempt_record import AttemptRecord
from indextts_job.checkpoint.fence import Fence
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.errors import AccessRefusedError, ConfigError, DataError, SupersededError, UnavailableError
from indextts_job.storage.config import StorageConfig
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.run_storage import RunStorage
from tests.support.stores import disk_full, fresh_url, save


@pytest.fixture(params=["file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> RunStorage:
    return open_storage(fresh_url(request.param, tmp_path))


def test_files_are_written_replaced_listed_and_deleted(storage: RunStorage) -> None:
    assert storage.list("folder") == {}
    storage.write("folder/a", b"one")
    storage.write("folder/a", b"three")
    storage.write("folder/sub/b", b"two")
    assert storage.read("folder/a") == b"three"
    assert {name: file.size_bytes for name, file in storage.list("folder").items()} == {"a": 5}
    storage.delete("folder/a")
    storage.delete("folder/a")
    assert storage.list("folder") == {}
    with pytest.raises(FileNotFoundError):
        storage.read("folder/a")


def test_only_one_creator_succeeds(storage: RunStorage) -> None:
    storage.create("folder/a", b"first")
    with pytest.raises(FileExistsError):
        storage.create("folder/a", b"second")
    assert storage.read("folder/a") == b"first"


def test_logs_grow(storage: RunStorage) -> None:
    storage.append("events/a.jsonl", b"1\n")
    storage.append("events/a.jsonl", b"2\n")
    storage.flush()
    assert storage.read("events/a.jsonl") == b"1\n2\n"


def test_attempts_are_numbered_and_the_newest_one_writes(storage: RunStorage) -> None:
    first = Fence(storage, AttemptRecord(node="a"))
    first.check()
    second = Fence(storage, AttemptRecord(node="b"))
    assert (first.attempt, second.attempt) == (1, 2)
    second.check()
    with pytest.raises(SupersededError, match="attempt 2") as caught:
        first.check()
    assert caught.value.exit_code == 75


def test_a_file_is_durable_before_it_is_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def recorded(*arguments: object, name: str = name, real: object = real) -> object:
            calls.append(name)
            return real(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(os, name, recorded)
    (tmp_path / "run").mkdir()
    storage = open_storage(str(tmp_path))
    storage.write("run/a", b"x")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_failed_write_leaves_the_old_content_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(str(tmp_path))
    storage.write("a", b"old")

    def fail(_descriptor: int) -> None:
        raise disk_full()

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UnavailableError, match="no space is left"):
        storage.write("a", b"new")
    assert storage.read("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_temporary_files_are_never_listed(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f/.tmp-1-x").touch()
    assert open_storage(str(tmp_path)).list("f") == {}


def test_a_path_through_a_file_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError):
        open_storage(str(tmp_path / "file/run")).write("a", b"x")


def test_refused_access_has_its_own_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_named: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(AccessRefusedError) as caught:
        open_storage(str(tmp_path / "run")).write("a", b"x")
    assert caught.value.exit_code == 77


def test_an_unknown_kind_of_storage_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match="gopher"):
        open_storage("gopher://bucket/run")


def test_an_attempt_of_another_submitted_job_ends_this_one_for_good(tmp_path: Path) -> None:
    def record(chain: str) -> AttemptRecord:
        return AttemptRecord(scheduler={"kind": "slurm", "chain": chain})

    storage = open_storage(str(tmp_path))
    first, again = Fence(storage, record("7")), Fence(storage, record("7"))
    with pytest.raises(SupersededError):
        first.check()
    other = Fence(storage, record("8"))
    with pytest.raises(ConfigError, match=r"two jobs were started .* slurm job 8, which goes on as attempt 3"):
        again.check()
    Fence(storage, AttemptRecord())  # by hand: nothing is known about the job
    with pytest.raises(SupersededError):
        other.check()


ODD_KEYS = ("/etc/passwd", "../x", "objects/../../x", "..", ".", "a//b", "a/./b", "a\\b", "a\0b", "a\nb")


@pytest.mark.parametrize("key", ODD_KEYS)
def test_a_key_that_leaves_the_run_is_refused(tmp_path: Path, key: str) -> None:
    """Retention deletes what a manifest names, and a manifest may be anybody's."""
    for storage in (open_storage(str(tmp_path / "run")), open_storage("memory://keys/run")):
        for act in (storage.read, storage.delete, storage.list, lambda k, s=storage: s.write(k, b"x")):
            with pytest.raises(DataError):
                act(key)


def test_two_writers_with_the_same_process_number_do_not_share_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every container has a process 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    seen = []
    replace = Path.replace

    def renamed(path: Path, target: Path) -> Path:
        seen.append(path.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", renamed)
    for _ in range(2):
        open_storage(str(tmp_path)).write("record", b"x")
    assert len(set(seen)) == 2


@pytest.fixture(params=[errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def _no_hard_links(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    def link(*_arguments: object, **_named: object) -> None:
        raise OSError(request.param, "not here")

    monkeypatch.setattr(os, "link", link)


@pytest.mark.usefixtures("_no_hard_links")
def test_without_hard_links_one_creator_succeeds_and_it_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_storage(str(tmp_path))
    storage.create("attempts/0001.json", b"first")
    with pytest.raises(FileExistsError):
        storage.create("attempts/0001.json", b"second")
    storage.create("attempts/0002.json", b"third")
    assert storage.read("attempts/0001.json") == b"first"
    assert sum("has no hard links" in record.message for record in caplog.records) == 1
    assert [path.name for path in (tmp_path / "attempts").iterdir() if path.name.startswith(".tmp")] == []


def test_without_fsync_of_folders_a_run_is_written_and_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fsync = os.fsync

    def of_files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_only)
    storage = open_storage(str(tmp_path / "run"))
    storage.write("a/b", b"1")
    storage.create("a/c", b"2")
    storage.append("events/x", b"3")
    storage.flush()
    assert (storage.read("a/b"), storage.read("a/c"), storage.read("events/x")) == (b"1", b"2", b"3")
    assert sum("fsync a folder" in record.message for record in caplog.records) == 1


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(ConfigError, match="is a folder where the run needs a file"):
        open_storage(str(tmp_path)).write("summary.json", b"{}")


def test_what_was_logged_is_in_the_bucket_before_the_commit_that_counts_it() -> None:
    """A kill right behind a commit leaves no hole in the sample log."""
    url = f"memory://logged/{uuid.uuid4().hex}"
    storage = open_storage(url, StorageConfig(log_interval_seconds=3600.0))
    storage.append("samples/attempt-0001.jsonl", b"line\n")
    save(CheckpointStore(storage), 1)
    assert open_storage(url).read("samples/attempt-0001.jsonl") == b"line\n"
