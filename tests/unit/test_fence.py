"""Attempt numbers: above everything that the run knows of, whatever was lost or damaged."""

import json
from pathlib import Path

import pytest

from indextts_job.checkpoint.attempt_record import AttemptRecord, parse_record
from indextts_job.checkpoint.fence import FOLDER, Fence
from indextts_job.checkpoint.store import CheckpointStore
from indextts_job.errors import ConfigError, SupersededError
from indextts_job.storage.remote_storage import open_storage
from tests.support.stores import save


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
    assert parse_record(content) == AttemptRecord()


def test_a_place_that_is_no_folder_is_named_and_not_searched_for_ever(tmp_path: Path) -> None:
    (tmp_path / FOLDER).symlink_to("nowhere")
    with pytest.raises(ConfigError, match="is no folder"):
        Fence(open_storage(str(tmp_path)), AttemptRecord())


def test_a_record_keeps_what_it_should_be_and_nothing_else() -> None:
    record = {"pid": 7, "node": "n", "step": -1, "started": 3, "scheduler": {"kind": "slurm", "x": 1}, "device": None}
    assert parse_record(json.dumps(record).encode()) == AttemptRecord(pid=7, node="n", scheduler={"kind": "slurm"})
