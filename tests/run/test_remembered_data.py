"""An attempt that goes on checks no array again."""

import threading
from pathlib import Path

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

    monkeypatch.setattr("indextts_job.data.checking.check_array", counted)
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
