"""What a run says of itself: goals, overfitting, the log of its checkpoints; and comparing them afterwards."""

import json
from pathlib import Path

import pytest

from indextts_job.checkpoint.manifest import file_name
from indextts_job.cli import main
from indextts_job.demo.world import World
from tests.support.attempts import attempt
from tests.support.runs import config_for, newest, state_of, store_of


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("quality") / "run"
    assert attempt(config_for(world, run, checkpoint__keep=2)).code == 0
    return run


def test_a_missed_goal_stops_the_run_committed_and_not_to_be_retried(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    goal = {"validation__stop_unless": ["text_loss < 0.001 by 10"]}
    ended = attempt(config_for(world, run, **goal))
    assert ended.code == 79
    assert "the goal text_loss < 0.001 by step 10 is missed" in ended.error
    assert newest(run).name.step == 10
    capsys.readouterr()
    assert main(["status", str(run)]) == 0
    assert "the goal text_loss < 0.001 by step 10 is missed" in " ".join(capsys.readouterr().out.split())
    # Started again it says so again, and trains nothing.
    assert attempt(config_for(world, run, **goal)).code == 79
    assert newest(run).name.step == 10
    assert attempt(config_for(world, run)).code == 0
    assert newest(run).name.step == 24


def test_a_goal_without_a_validation_is_refused(world: World, tmp_path: Path) -> None:
    command = [
        *("train", "--train-manifest", str(world.train_manifest), "--tokenizer", str(world.tokenizer)),
        *("--output-dir", str(tmp_path / "run"), "validation.stop_unless=[text_loss < 3 by 5]"),
    ]
    assert main(command) == 78


def test_overfitting_is_said_and_recorded(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    keys: dict[str, object] = {
        **{"schedule__learning_rate": 1e-2, "schedule__max_steps": 80, "schedule__epochs": 100},
        **{"validation__interval_steps": 5, "recipe__dropout": 0.0},
        # Sentences of random words can only be learned by heart.
        **{"recipe__text_loss_weight": 1.0, "recipe__mel_loss_weight": 0.0},
    }
    ended = attempt(config_for(world, run, **keys))
    assert ended.code == 0
    since = newest(run).values.history.overfitting_since
    assert since is not None
    assert "learns the training set by heart" in ended.output
    assert json.loads((run / "summary.json").read_bytes())["overfitting_since_step"] == since


def test_every_checkpoint_that_ever_was_is_in_the_log(finished: Path) -> None:
    lines = json.loads((finished / "checkpoint_log.json").read_bytes())
    assert [line["step"] for line in lines] == [4, 5, 8, 10, 12, 15, 16, 20, 24]
    assert lines[-1]["is_final"]
    assert lines[-1]["checkpoint_path"].endswith(f"checkpoints/{file_name(newest(finished).name)}")
    assert {"epoch", "loss", "is_best", "timestamp"} <= lines[0].keys()
    assert len(store_of(finished).names()) < len(lines)


def test_checkpoints_are_compared_on_the_same_samples(
    world: World, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path for path in finished.rglob("*"))
    assert main(["checkpoints", "compare", str(finished), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["total"] for row in rows] == sorted(row["total"] for row in rows)
    recorded = {one.step: one.losses.total for one in newest(finished).values.history.validations}
    by_step = {int(row["name"].split("-")[1]): row["total"] for row in rows}
    assert by_step[20] == pytest.approx(recorded[20], rel=1e-6)
    assert main(["checkpoints", "compare", str(finished), "--validation", str(world.train_manifest)]) == 0
    assert "40 samples each" in capsys.readouterr().out
    assert sorted(path for path in finished.rglob("*")) == before


def test_a_checkpoint_that_is_to_be_kept_outlives_retention(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert attempt(config_for(world, run, schedule__max_steps=8)).code == 0
    first = store_of(run).names()[0]
    assert main(["checkpoints", "keep", str(run / "checkpoints" / file_name(first))]) == 0
    more = {"resume__accept": ["schedule.max_steps"], "checkpoint__keep": 1}
    assert attempt(config_for(world, run, schedule__max_steps=24, **more)).code == 0
    kept = store_of(run).names()[0]
    assert (kept.step, "keep" in kept.tags) == (first.step, True)
    store_of(run).verify(store_of(run).manifest(kept))
    assert main(["checkpoints", "keep", str(run)]) == 78


def test_saves_by_the_clock_change_no_bit(world: World, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    keys: dict[str, object] = {
        **{"checkpoint__interval_steps": -1, "checkpoint__shortest_seconds": 0.0, "checkpoint__longest_seconds": 0.0}
    }
    assert attempt(config_for(world, run, **keys)).code == 0
    steps = [line["step"] for line in json.loads((run / "checkpoint_log.json").read_bytes())]
    assert len(steps) > 6  # more than the best ones
    assert state_of(newest(run)) == state_of(newest(finished))
