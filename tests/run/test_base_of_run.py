"""A run and each of its checkpoints may be the base of another run: the same as through an export."""

from pathlib import Path

import pytest
import torch

from indextts_job.checkpoint.manifest import file_name
from indextts_job.cli import main
from indextts_job.demo.world import World
from indextts_job.errors import ConfigError, DataError
from indextts_job.model.base_checkpoint import load_base_checkpoint
from indextts_job.model.base_of_run import load_base
from indextts_job.model.config import GPTConfig, gpt_config
from indextts_job.storage.files import read_yaml
from tests.support.attempts import attempt
from tests.support.runs import config_for, newest


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    assert attempt(config_for(world, run, schedule__max_steps=8)).code == 0
    return run


@pytest.fixture
def model(world: World) -> GPTConfig:
    return gpt_config(read_yaml(str(world.model_config), "", ""), "")


def test_a_run_and_its_checkpoint_hold_what_the_export_holds(finished: Path, model: GPTConfig, tmp_path: Path) -> None:
    assert main(["export", str(finished), "--output-dir", str(tmp_path)]) == 0
    exported = load_base_checkpoint(str(tmp_path / "gpt.pth"), model)
    checkpoint = finished / "checkpoints" / file_name(newest(finished).name)
    for source in (str(finished), f"{finished}/", f"file://{finished}", str(checkpoint)):
        base = load_base(source, model, {}, "")
        assert base.text_pieces == exported.text_pieces == 217
        assert base.tensors.keys() == exported.tensors.keys()
        assert all(torch.equal(base.tensors[key], exported.tensors[key]) for key in exported.tensors)


def test_a_second_run_starts_from_the_first(world: World, finished: Path, tmp_path: Path) -> None:
    ended = attempt(config_for(world, tmp_path, inputs__base_checkpoint=str(finished), schedule__max_steps=2))
    assert ended.code == 0, ended.error


def test_what_is_no_checkpoint_of_a_run_is_said(finished: Path, model: GPTConfig, tmp_path: Path) -> None:
    for wrong in (finished / "checkpoints/none.json", finished / "summary.json"):
        with pytest.raises(ConfigError, match=r"base checkpoint not found.*no checkpoint of a run"):
            load_base(str(wrong), model, {}, "")
    with pytest.raises(ConfigError, match=r"is a folder .*expected a file"):
        load_base(str(tmp_path), model, {}, "")
    (tmp_path / "gpt.pth").write_text("{}")
    with pytest.raises(DataError, match="not a readable PyTorch checkpoint"):
        load_base(str(tmp_path / "gpt.pth"), model, {}, "")
