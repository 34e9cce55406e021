"""`doctor checkpoint` and `doctor run`: what they say of sound and of spoilt things, and with which exit code."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from indextts_job.cli import main
from indextts_job.demo.world import World
from tests.support.attempts import attempt
from tests.support.legacy import old_checkpoint, saved
from tests.support.runs import config_for, newest


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("doctor") / "run"
    assert attempt(config_for(world, run)).code == 0
    return run


def findings(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    capsys.readouterr()
    code = main(["doctor", *arguments, "--json"])
    return code, {finding["subject"]: finding for finding in json.loads(capsys.readouterr().out)}


def test_a_sound_checkpoint_is_described(world: World, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--base-checkpoint", str(world.base_checkpoint)]
    code, found = findings(capsys, "checkpoint", str(finished), *base)
    assert code == 0
    assert {finding["level"] for finding in found.values()} == {"ok"}
    assert "step 24 of 24" in found["checkpoint"]["found"]
    assert "300 rows bit for bit" in found["frozen rows"]["found"]


def test_another_base_checkpoint_is_noticed(
    world: World, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(world.base_checkpoint, weights_only=True)
    state["text_head.weight"][7] += 0.5
    torch.save(state, tmp_path / "gpt.pth")
    code, found = findings(capsys, "checkpoint", str(finished), "--base-checkpoint", str(tmp_path / "gpt.pth"))
    assert code == 65
    assert found["frozen rows"]["found"] == "1 of 300 rows are not the base checkpoint's"


def test_a_damaged_checkpoint_is_an_error(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert attempt(config_for(world, run, schedule__max_steps=4)).code == 0
    path = run / next(key for key in newest(run).objects if key.endswith(".safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    code, found = findings(capsys, "checkpoint", str(run))
    assert code == 65
    assert "do not have the hash" in found["integrity"]["found"]


@pytest.mark.parametrize(
    ("step", "moved", "words"),
    [
        (38_000, True, "base rows hold trained values"),
        (3_000, False, "either is fine"),
        (9_000, False, "yes"),
        (50_000, False, "definitely"),
    ],
)
def test_an_old_checkpoint_is_worth_resuming_or_not(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], step: int, moved: bool, words: str
) -> None:
    path = saved(old_checkpoint(world, moved=moved, step=step), tmp_path)
    base = ["--base-checkpoint", str(world.base_checkpoint), "--config", str(world.model_config)]
    code, found = findings(capsys, "checkpoint", str(path), *base)
    assert code == 0
    assert words in found["worth resuming"]["found"]


def written(world: World, run: Path, **keys: object) -> str:
    path = run.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config_for(world, run, hardware__device="cpu", **keys).to_json()), encoding="utf-8")
    return str(path)


def test_a_run_that_would_begin_is_told_how(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    code, found = findings(capsys, "run", written(world, run))
    assert code == 0
    assert "fresh start from the base checkpoint" in found["resume"]["found"]
    assert "24 steps" in found["plan"]["found"]
    assert not (run / "checkpoints").exists()
    assert not (run / "attempts").exists()


def test_a_run_that_would_go_on_is_told_where(world: World, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(finished.rglob("*"))
    code, found = findings(capsys, "run", written(world, finished))
    assert code == 0
    assert "step 24 of 24" in found["resume"]["found"]
    assert sorted(finished.rglob("*")) == before


@pytest.mark.parametrize(
    ("keys", "subject", "code"),
    [
        ({"recipe__seed": 5}, "resume", 78),
        ({"inputs__tokenizer": "nowhere.model"}, "inputs and data", 78),
        ({"data__train_manifests": ["nowhere.jsonl"]}, "inputs and data", 65),
        ({"resume__source": "no/such/run"}, "checkpoint", 78),
    ],
)
def test_what_would_end_a_run_is_told_with_its_exit_code(
    world: World, finished: Path, capsys: pytest.CaptureFixture[str], keys: dict[str, object], subject: str, code: int
) -> None:
    found_code, found = findings(capsys, "run", written(world, finished, **keys))
    assert found_code == code
    assert found[subject]["level"] == "error"


def test_a_problem_report_has_what_is_asked_for_and_no_secrets(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = tmp_path / "report.json", tmp_path / "run"
    shutil.copytree(finished, run)
    message = 'https://h/y?sig=hush "password": "hush" s3://key:hush@b\u2028'
    event = {"event": "Notice", "step": 24, "time": "2026-01-01T00:00:00+00:00", "message": message}
    with (run / "events/attempt-0001.jsonl").open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(event, ensure_ascii=False)}\n")
    assert main(["doctor", "report", str(run), "--output", str(path)]) == 0
    assert "hush" not in path.read_text(encoding="utf-8")
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["newest_checkpoint"]["step"] == 24
    assert document["newest_checkpoint"]["config"]["recipe"]["seed"] == 1234
    assert any("AttemptEnded" in line for line in document["events"]["1"])
    assert {"indextts_job", "torch"} <= document["versions"].keys()
    assert "token" not in document["attempts"][0]
    assert "***" in document["events"]["1"][-1]
    assert main(["doctor", "report", str(finished), "--output", str(tmp_path / "no/where")]) == 78
    assert main(["doctor", "report", str(tmp_path / "nothing"), "--output", str(path)]) == 78
