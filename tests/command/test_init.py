"""A run.yaml from a recipe: read back by the program itself, never written over anything."""

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from indextts_job.cli import main
from indextts_job.commands.recipes import RECIPES
from indextts_job.commands.settings import configuration
from indextts_job.demo.world import make_world
from indextts_job.errors import EXIT_CONFIG, EXIT_OK
from indextts_job.strict_yaml import parse_yaml
from tests.support.runs import TINY


@pytest.mark.parametrize("recipe", [recipe.name for recipe in RECIPES])
@pytest.mark.parametrize("model", ["2.0", "2.5"])
def test_every_recipe_is_a_configuration(tmp_path: Path, recipe: str, model: str) -> None:
    path = tmp_path / "run.yaml"
    command = ["init", "--recipe", recipe, "--model", model, "--language", "tr", "--output", str(path)]
    assert main(command) == EXIT_OK
    config = configuration([str(path)], {}).config
    assert config.run == "runs/tr"
    assert (config.adapter.rank > 0) == (recipe != "full")
    assert config.inputs.tokenizer.endswith(".tiktoken") == (model == "2.5")
    assert config.data.train_manifests[0].endswith("::tr")
    text = path.read_text()
    assert text.startswith(f"# yaml-language-server: $schema=run.schema.json\n# IndexTTS-{model}: ")
    jsonschema.validate(parse_yaml(text, "the test"), json.loads((tmp_path / "run.schema.json").read_text()))
    assert "# Settings: " in text


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("mine")
    assert main(["init", "--output", str(path)]) == EXIT_CONFIG
    assert path.read_text() == "mine"
    assert "exists" in capsys.readouterr().err


def test_a_language_without_a_slot_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["init", "--language", "xx", "--output", str(tmp_path / "run.yaml")]
    assert main(command) == EXIT_CONFIG
    assert "'xx' is no language of IndexTTS-2.5" in capsys.readouterr().err
    assert main([*command[:2], "az:tt", *command[3:]]) == EXIT_OK
    assert "::az:tt]" in (tmp_path / "run.yaml").read_text()


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--run", "runs/my run #1", "run: "),
        ("--run", "runs: x", "run: "),
        ("--run", "*x", "run: "),
        ("--train-manifest", "a, b.jsonl", "train"),
        ("--tokenizer", "{t}", "tokenizer"),
    ],
)
def test_whatever_a_path_holds_is_read_back(tmp_path: Path, flag: str, value: str, words: str) -> None:
    path = tmp_path / "run.yaml"
    assert main(["init", "--output", str(path), flag, value]) == EXIT_OK
    config = configuration([str(path)], {}).config
    assert value in (config.run, config.inputs.tokenizer, config.data.train_manifests[0].rpartition("::")[0]), words


@pytest.mark.parametrize("language", ["x, y", "a: b", "", "../x"])
def test_what_is_no_language_is_refused_for_2_0_too(tmp_path: Path, language: str) -> None:
    path = tmp_path / "run.yaml"
    assert main(["init", "--model", "2.0", "--language", language, "--output", str(path)]) == EXIT_CONFIG
    assert not path.exists()


def test_it_looks_for_the_files_and_says_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(tmp_path, TINY)
    monkeypatch.chdir(tmp_path)
    command = ["init", "--model", "2.0", "--tokenizer", "tokenizers/none.model"]
    assert main(command) == EXIT_OK
    told = capsys.readouterr().out
    assert "found    checkpoints/gpt.pth\n" in told
    assert f"found    processed/{world.train_manifest.name}: 40 records (am 40)" in told
    assert "missing  tokenizers/none.model" in told
    assert "indextts-job tokenizer extend" in told
    assert told.endswith("Next: indextts-job train run.yaml --dry-run\n")


def test_on_a_terminal_it_asks(tmp_path: Path) -> None:
    parent, child = pty.openpty()
    environment = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, "-m", "indextts_job", "init", "--run", "runs/x", "--output", str(tmp_path / "run.yaml")]
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment) as process:
        os.close(child)
        os.write(parent, b"\n\nmy.tiktoken\n\n\n")
        with contextlib.suppress(OSError):  # the end of a terminal
            while os.read(parent, 4096):
                pass
    os.close(parent)
    assert process.returncode == EXIT_OK
    config = configuration([str(tmp_path / "run.yaml")], {}).config
    assert (config.run, config.inputs.tokenizer) == ("runs/x", "my.tiktoken")
    assert config.inputs.base_checkpoint == "checkpoints/gpt.pth"
