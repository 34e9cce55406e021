"""Attempt numbers: above everything that the run knows of, whatever was lost or damaged."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from indextts_job.checkpoint.attempt_record import AttemptRecord, parse_record
from indextts_job.checkpoint.fence import FOLDER, MOST_TRIES, Fence
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.errors import ConfigError, IndexTTSJobError, SupersededError, UnavailableError
from indextts_job.storage.remote_storage import open_storage
from indextts_job.storage.run_storage import RunStorage
from tests.support.stores import FaultyStorage, save


def test_the_next_number_is_above_every_checkpoints(tmp_path: Path) -> None:
    """A partial copy of a run may have lost its records; commits rank by the number all the same."""
    store = CheckpointStore(open_storage(str(tmp_path)))
    save(store, 30, attempt=7)
    assert Fence(store.storage, AttemptRecord()).attempt == 8


def test_an_attempt_is_superseded_by_a_commit_of_a_later_one(tmp_path: Path) -> None:
    store = CheckpointStore(open_storage(str(tmp_path)))
    fence = Fence(store.storage, AttemptRecord())
    fence.check()
    save(store, 10, attempt=fence.attempt + 1)
    with pytest.raises(SupersededError):
        fence.check()


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"[" * 100_000, b"\xff", b'{"scheduler": 7, "step": "x"}'])
def test_a_damaged_record_of_the_newest_attempt_is_no_obstacle(tmp_path: Path, content: bytes) -> None:
    storage = open_storage(str(tmp_path))
    fence = Fence(storage, AttemptRecord())
    storage.write(f"{FOLDER}/0002.json", content)
    with pytest.raises(SupersededError):
        fence.check()
    assert Fence(storage, AttemptRecord()).attempt == 3
    assert replace(parse_record(content), unique="") == AttemptRecord()


def test_a_place_that_is_no_folder_is_named_and_not_searched_for_ever(tmp_path: Path) -> None:
    (tmp_path / FOLDER).symlink_to("nowhere")
    with pytest.raises(ConfigError, match="is no folder"):
        Fence(open_storage(str(tmp_path)), AttemptRecord())


def test_a_record_keeps_what_it_should_be_and_nothing_else() -> None:
    record = {"pid": 7, "node": "n", "step": -1, "started": 3, "scheduler": {"kind": "slurm", "x": 1}, "device": None}
    assert parse_record(json.dumps(record).encode()) == AttemptRecord(pid=7, node="n", scheduler={"kind": "slurm"})


def of_job(chain: str) -> AttemptRecord:
    return AttemptRecord(scheduler={"kind": "slurm", "chain": chain}) if chain else AttemptRecord()


def test_attempts_count_from_one_and_write_down_who_they_are(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    record = AttemptRecord(node="n1", pid=7)
    assert [Fence(storage, record).attempt for _ in range(3)] == [1, 2, 3]
    assert sorted(storage.list(FOLDER)) == ["0001.json", "0002.json", "0003.json"]
    content = storage.read(f"{FOLDER}/0002.json")
    assert replace(parse_record(content), unique="") == record
    assert content.startswith(b'{\n "')  # a line for each value: people read it
    tokens = {json.loads(storage.read(f"{FOLDER}/{name}"))["unique"] for name in storage.list(FOLDER)}
    assert len(tokens) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", token) for token in tokens)


def test_files_of_other_names_are_no_attempts(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    for name in ("notes-0009.json", "0009.json.bak", "009.json", "0009"):
        storage.write(f"{FOLDER}/{name}", b"{}")
    storage.write(f"{FOLDER}/12345.json", b"{}")
    assert Fence(storage, AttemptRecord()).attempt == 12346


@pytest.mark.parametrize(
    ("mine", "newer", "error"),
    [
        ("7", "8", ConfigError),
        ("7", "7", SupersededError),  # the same job, started again
        ("", "8", SupersededError),  # a person started this one
        ("7", "", SupersededError),
    ],
)
def test_who_has_to_leave_is_told_why(tmp_path: Path, mine: str, newer: str, error: type[IndexTTSJobError]) -> None:
    storage = open_storage(str(tmp_path))
    fence = Fence(storage, of_job(mine))
    fence.check()
    successor = Fence(storage, of_job(newer))
    successor.check()
    with pytest.raises(error) as caught:
        fence.check()
    message = {
        ConfigError: f"two jobs were started for the run {storage.url}: slurm job 8, which goes on as attempt 2, and "
        "slurm job 7, which ends here without writing. Nothing is lost.",
        SupersededError: f"attempt 2 of {storage.url} has started; this is attempt 1 and it stops without writing, so "
        "that one run has one writer. Nothing is lost: the newer attempt goes on.",
    }[error]
    assert str(caught.value) == message


class TakenBy:
    """Others take the first numbers that this attempt tries, in the moment between its look and its try."""

    def __init__(self, inner: RunStorage, numbers: int, *, exclusive: bool = True) -> None:
        self._inner = inner
        self.left = numbers
        self.exclusive = exclusive
        self.tried: list[str] = []

    def __call__(self, _number: int, verb: str, key: str) -> None:
        if verb == "create":
            self.tried.append(key)
            if self.left and self.exclusive:
                self.left -= 1
                self._inner.create(key, b"{}")
        elif verb == "read" and key.startswith(FOLDER) and self.left and not self.exclusive:
            self.left -= 1
            self._inner.write(key, b"{}")


def test_a_number_that_another_takes_in_the_same_moment_is_left_to_it(tmp_path: Path) -> None:
    inner = open_storage(str(tmp_path))
    others = TakenBy(inner, 2)
    fence = Fence(FaultyStorage(inner, others), AttemptRecord(node="mine"))
    assert fence.attempt == 3
    assert others.tried == [f"{FOLDER}/000{number}.json" for number in (1, 2, 3)]
    assert [parse_record(inner.read(f"{FOLDER}/000{number}.json")).node for number in (1, 2, 3)] == ["", "", "mine"]


def nothing(_number: int, _verb: str, _key: str) -> None:
    """No fault."""


class Careless(FaultyStorage):
    """A store that ignores the condition of a write: the last one wins."""

    def excludes_creators(self) -> bool:
        return False

    def create(self, key: str, content: bytes) -> None:
        self._count("create", key)
        self._inner.write(key, content)


def test_a_store_that_keeps_nobody_out_is_told_of_and_looked_at_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inner = open_storage(str(tmp_path))
    fence = Fence(Careless(inner, TakenBy(inner, 1, exclusive=False)), AttemptRecord(node="mine"))
    assert not fence.exclusive
    assert fence.attempt == 2
    assert caplog.messages == [
        f"{inner.url} ignores conditional writes: two attempts that start in the same moment may both believe to be "
        "the only one. Start one job per run, or use a store that honours If-None-Match."
    ]


@pytest.mark.parametrize(
    ("mine", "other", "error"), [("7", "8", ConfigError), ("7", "7", SupersededError), ("", "", SupersededError)]
)
def test_of_two_attempts_with_one_number_the_overwritten_one_leaves(
    tmp_path: Path, mine: str, other: str, error: type[IndexTTSJobError]
) -> None:
    """Each has read back its own record before the other one wrote: both believe to be the only one."""
    inner = open_storage(str(tmp_path))
    first = Fence(Careless(inner, nothing), of_job(mine))
    first.check()
    record = inner.read(f"{FOLDER}/0001.json")
    inner.delete(f"{FOLDER}/0001.json")
    first.check()  # no record at all is nobody else's
    second = Fence(Careless(inner, nothing), of_job(other))
    assert inner.read(f"{FOLDER}/0001.json") != record
    assert first.attempt == second.attempt == 1
    second.check()
    with pytest.raises(error) as caught:
        first.check()
    if error is SupersededError:
        assert "attempt 1 of" in str(caught.value)
        assert "another one of the same number" in str(caught.value)


def test_an_exclusive_store_is_not_complained_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Fence(open_storage(str(tmp_path)), AttemptRecord()).exclusive
    assert not caplog.messages


def test_the_search_for_a_number_ends(tmp_path: Path) -> None:
    inner = open_storage(str(tmp_path))
    save(CheckpointStore(inner), 5, attempt=4)

    def full(_number: int, verb: str, _key: str) -> None:
        if verb == "create":
            raise FileExistsError

    faulty = FaultyStorage(inner, full)
    with pytest.raises(UnavailableError) as caught:
        Fence(faulty, AttemptRecord())
    assert str(caught.value) == (
        f"{inner.url}/{FOLDER}: none of the numbers 5 to {4 + MOST_TRIES} could be taken. Something there refuses new "
        "files, or very many attempts start at the same time."
    )
