"""A launcher that gives a progress file learns how far its trainer has committed."""

from pathlib import Path

import pytest

from indextts_job.demo.world import World
from indextts_job.scheduler import PROGRESS_VARIABLE
from launch.job import read_progress
from tests.support.attempts import attempt
from tests.support.runs import config_for


def test_the_step_of_the_newest_checkpoint_is_in_the_file(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "progress"
    monkeypatch.setenv(PROGRESS_VARIABLE, str(path))
    assert attempt(config_for(world, tmp_path / "run", schedule__max_steps=6)).code == 0
    assert read_progress(path) == 6


def test_a_file_that_cannot_be_written_does_not_end_a_training(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROGRESS_VARIABLE, str(tmp_path / "missing" / "progress"))
    assert attempt(config_for(world, tmp_path / "run", schedule__max_steps=4)).code == 0
