"""An attempt that goes on checks no array again."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from indextts_job.data.array_files import check_array
from indextts_job.demo.world import World
from tests.support.attempts import attempt
from tests.support.runs import config_for


def test_a_resume_reads_no_array_of_a_manifest_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []

    def counted(path: str, *given: object) -> object:
        checked.append(path)
        return check_array(path, *given)  # type: ignore[arg-type]

    monkeypatch.setattr("indextts_job.data.seen_files.check_array", counted)
    run = tmp_path / "run"
    assert attempt(config_for(world, run, schedule__max_steps=4)).code == 0
    assert checked
    for thread in threading.enumerate():
        if thread.name == "data checks":
            thread.join()
    checked.clear()
    longer = config_for(world, run, schedule__max_steps=8, resume__accept=["schedule.max_steps"])
    ended = attempt(longer)
    assert ended.code == 0, ended.error
    assert checked == []
    (run / "data").rename(tmp_path / "away")
    assert attempt(longer).code == 0
    assert checked


def test_an_array_that_has_changed_is_checked_again_by_the_attempt_after(world: World, tmp_path: Path) -> None:
    """It is noticed where it is read. From then on the start says what is wrong, instead of an attempt hours later."""
    shutil.copytree(world.folder, tmp_path / "world")
    own, run = World(tmp_path / "world"), tmp_path / "run"
    config = config_for(own, run, schedule__max_steps=8)
    assert attempt(config, stop_at=2).code == 75
    for thread in threading.enumerate():
        if thread.name == "data checks":
            thread.join()
    assert list((run / "data").iterdir())
    for path in (own.folder / "processed/emo_vec").glob("*.npy"):
        np.save(path, np.load(path) + 1)
    ended = attempt(config)
    assert ended.code == 65
    assert "changed since it was checked" in ended.error
    again = attempt(config)
    assert again.code in (65, 78)
    assert "changed since it was checked" not in again.error
