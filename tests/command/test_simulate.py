"""`indextts-job simulate`: from figures, from a trace, from a run."""

import json
from pathlib import Path

import pytest

from indextts_job.cli import main
from indextts_job.demo.world import World
from tests.support.attempts import attempt
from tests.support.runs import config_for

FIGURES = ["simulate", "--steps", "1000", "--step-seconds", "2", "--start-seconds", "60", "--save-seconds", "10"]


def test_the_best_interval_and_machine_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    offers = ["--offer", "slow:0.3:1:4", "--offer", "fast:1.0:5:8"]
    assert main([*FIGURES, "--kills-per-day", "4", *offers, "--intervals", "50", "500"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("best") == 1
    assert "slow" in shown


def test_a_trace_is_played_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text("500\n\n700 noticed\n")
    assert main([*FIGURES, "--trace", str(trace), "--intervals", "100", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["attempts"] == 3
    assert row["best"]
    trace.write_text("soon\n")
    assert main([*FIGURES, "--trace", str(trace)]) == 78
    assert "trace.txt:1: 'soon'" in capsys.readouterr().err
    assert main([*FIGURES, "--trace", str(tmp_path / "none")]) == 78


def test_a_run_gives_its_own_pace(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert attempt(config_for(world, run)).code == 0
    assert main(["simulate", str(run), "--intervals", "8"]) == 0
    assert "24 steps of" in capsys.readouterr().out


@pytest.mark.parametrize("given", [[], ["--steps", "5"], ["no/such/run"]])
def test_without_a_pace_there_is_nothing_to_say(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *given]) == 78
    assert "give" in capsys.readouterr().err.lower()
