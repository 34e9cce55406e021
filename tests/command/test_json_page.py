"""docs/json.md names the keys that programs get, and no others; and the lines of Python beside the format work."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from indextts_job.checkpoint.describe import SCHEMA
from indextts_job.cli import main
from indextts_job.demo.world import World
from tests.support.attempts import attempt
from tests.support.runs import config_for

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "json.md").read_text(encoding="utf-8")


def documented(heading: str) -> set[str]:
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    assert attempt(config_for(world, folder, schedule__max_steps=4)).code == 0
    return folder


def test_the_summary_has_the_documented_keys(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["schema"] == SCHEMA
    assert set(summary) == documented("summary.json")
    checkpoints = next(line for line in PAGE.splitlines() if line.startswith("| `checkpoints`"))
    assert set(summary["checkpoints"][0]) <= set(re.findall(r"`(\w+)`", checkpoints))


def test_the_summary_names_the_best_checkpoint(world: World, tmp_path: Path) -> None:
    assert attempt(config_for(world, tmp_path / "run", schedule__max_steps=11)).code == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    best = next(row for row in summary["checkpoints"] if row["name"] == summary["best_checkpoint"])
    assert best["step"] == summary["best_validation"]["step"]
    assert "best" in best["tags"]


def test_the_summary_has_totals_of_every_manifest_and_of_all_updates(world: World, tmp_path: Path) -> None:
    manifests = [f"{world.train_manifest}::am", str(world.validation_manifest)]
    config = config_for(world, tmp_path / "run", schedule__max_steps=2, data__train_manifests=manifests)
    assert attempt(config).code == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    one, other = summary["training_set"]
    assert [one["manifest"], other["manifest"]] == manifests
    for found, manifest in ((one, world.train_manifest), (other, world.validation_manifest)):
        assert found["languages"] == {"am": found["samples"]}
        assert found["samples"] == len(Path(manifest).read_text().splitlines())
        assert len(found["fingerprint"]) == 64
    assert one["fingerprint"] != other["fingerprint"]
    codes = json.loads((tmp_path / "run/checkpoints" / summary["checkpoints"][0]["name"]).read_text())
    hours = codes["values"]["dataset"]["codes"] / 50 / 3600
    assert one["hours"] + other["hours"] == pytest.approx(hours, abs=1e-4)
    assert summary["samples"] == 2 * config.recipe.global_batch_samples
    assert summary["tokens"] > summary["samples"]
    assert summary["scaler_skips"] == 0


def test_the_status_has_the_documented_keys(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(run), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["schema"] == SCHEMA
    assert {*status, *status["standing"]} == documented("status --json")
    spent = next(line for line in PAGE.splitlines() if line.startswith("| `spent_seconds`"))
    assert set(status["spent_seconds"]) == set(re.findall(r"`([\w -]+)`", spent)) - {"spent_seconds"}


def test_the_other_commands_have_the_documented_keys(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*arguments: str) -> Any:
        capsys.readouterr()
        assert main([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    def row(command: str) -> set[str]:
        line = next(line for line in PAGE.splitlines() if line.startswith(f"| `{command}"))
        return set(re.findall(r"`(\w+)`", line.partition(" | ")[2]))

    checkpoints = next(line for line in PAGE.splitlines() if line.startswith("| `checkpoints`"))
    assert set(printed("checkpoints", "list", str(run))[0]) <= set(re.findall(r"`(\w+)`", checkpoints))
    best = printed("checkpoints", "best", str(run))
    assert set(best) == row("checkpoints best")
    assert [type(one["total"]) for one in best["validations"]] == [float]
    assert [one["best"] for one in best["validations"]] == [True]
    assert set(printed("doctor", "checkpoint", str(run))[0]) == row("doctor") - {"ok", "warning", "error"}


def test_the_lines_of_python_of_the_format_page_work(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (DOCS / "checkpoint-format.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    found: dict[str, Any] = {}
    exec(block.replace("runs/amharic", str(run)), found)  # noqa: S102  # our own page
    assert "4 1 ('best', 'final')" in capsys.readouterr().out
    assert set(found["weights"]) == {name for name in found["newest"].tensors if name.startswith("model/")}
