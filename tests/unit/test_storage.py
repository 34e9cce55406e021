"""Storage verbs on files and in memory, and the durability of local writes."""

import os
from pathlib import Path

import pytest

from indextts_job.checkpoint.fence import Fence
from indextts_job.checkpoint.remote import open_storage
from indextts_job.checkpoint.storage import RunStorage
from indextts_job.errors import AccessRefusedError, ConfigError, SupersededError, UnavailableError
from tests.support.stores import disk_full, fresh_url


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
    first = Fence(storage, {"node": "a"})
    first.check()
    second = Fence(storage, {"node": "b"})
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
    def record(chain: str) -> dict[str, object]:
        return {"scheduler": {"kind": "slurm", "chain": chain}}

    storage = open_storage(str(tmp_path))
    first, again = Fence(storage, record("7")), Fence(storage, record("7"))
    with pytest.raises(SupersededError):
        first.check()
    other = Fence(storage, record("8"))
    with pytest.raises(ConfigError, match=r"two jobs were started .* slurm job 8, which goes on as attempt 3"):
        again.check()
    Fence(storage, {})  # by hand: nothing is known about the job
    with pytest.raises(SupersededError):
        other.check()
