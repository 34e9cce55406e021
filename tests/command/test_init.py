"""A run.yaml from a recipe: read back by the program itself, never written over anything."""

from pathlib import Path

import pytest

from indextts_job.cli import main
from indextts_job.commands.recipes import RECIPES
from indextts_job.commands.settings import configuration
from indextts_job.errors import EXIT_CONFIG, EXIT_OK


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
    assert text.startswith(f"# IndexTTS-{model}: ")
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
