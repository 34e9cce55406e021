"""Trackers with their own packages, offline: one run over all attempts, each point once, and never a training's end."""

import json
from collections import Counter
from pathlib import Path

import pytest

from indextts_job.demo.world import World
from indextts_job.errors import EXIT_CONFIG, EXIT_OK, EXIT_STOPPED
from tests.support.attempts import Attempted, attempt
from tests.support.runs import config_for, events, newest, state_of

KEYS = {"schedule__max_steps": 12, "report__log_interval_steps": 2, "validation__interval_steps": 4}


def train(world: World, run: Path, tracker: str, stop: int = 0) -> Attempted:
    return attempt(config_for(world, run, report__trackers=[tracker], report__tracker_project="voices", **KEYS), stop)


def expected(run: Path) -> dict[str, dict[int, float]]:
    """The curves of an undisturbed run, from its journal."""
    lines = {event["step"]: event["losses"]["total"] for event in events(run, "TrainLine")}
    return {
        "train/total": lines,
        "val/total": {event["step"]: event["losses"]["total"] for event in events(run, "Validated")},
    }


@pytest.fixture(scope="module")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert attempt(config_for(world, run, **KEYS)).code == EXIT_OK
    return run


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where both trackers write, and nowhere else."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_mlflow_has_one_run_and_each_point_once(world: World, store: Path, undisturbed: Path) -> None:
    client = pytest.importorskip("mlflow.tracking", reason="mlflow-skinny is not installed").MlflowClient()
    run = store / "runs/amharic"
    for stop in (3, 7):
        done = train(world, run, "mlflow", stop)
        assert done.code == EXIT_STOPPED, done.error
    (found,) = client.search_runs([client.get_experiment_by_name("voices").experiment_id])
    assert found.info.status == "KILLED"
    assert train(world, run, "mlflow").code == EXIT_OK
    assert state_of(newest(run)) == state_of(newest(undisturbed))
    (found,) = client.search_runs([client.get_experiment_by_name("voices").experiment_id])
    assert (found.info.run_name, found.info.status) == ("amharic", "FINISHED")
    assert found.data.params["schedule.max_steps"] == "12"
    for tag, points in expected(undisturbed).items():
        history = client.get_metric_history(found.info.run_id, tag)
        assert Counter(one.step for one in history) == Counter(points.keys()), tag
        assert {one.step: one.value for one in history} == points


def test_weights_and_biases_has_one_run_and_each_point_once(world: World, store: Path, undisturbed: Path) -> None:
    proto = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="wandb is not installed")
    from indextts_job.report.trackers import offline

    run = store / "runs/amharic"
    assert train(world, run, "wandb", 5).code == EXIT_STOPPED
    done = train(world, run, "wandb")
    assert done.code == EXIT_OK, done.error
    assert state_of(newest(run)) == state_of(newest(undisturbed))
    rows: list[dict[str, float]] = []
    identities = set()
    for path in sorted(store.glob("wandb/offline-run-*/*.wandb")):
        for content in offline.log_records(path.read_bytes()):
            record = proto.Record()
            record.ParseFromString(content)
            if record.HasField("run"):
                identities.add((record.run.run_id, record.run.project, record.run.display_name))
            if record.HasField("history"):
                rows.append(
                    {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                )
    assert len(identities) == 1
    assert next(iter(identities))[1:] == ("voices", "amharic")
    for tag, points in expected(undisturbed).items():
        found = [(row["step"], row[tag]) for row in rows if tag in row]
        assert Counter(step for step, _ in found) == Counter(points.keys()), tag
        assert dict(found) == points


def test_points_that_a_tracker_lacks_are_sent_later(world: World, store: Path, undisturbed: Path) -> None:
    """It was asked for later, or was away; or the process was killed before it had them."""
    client = pytest.importorskip("mlflow.tracking", reason="mlflow-skinny is not installed").MlflowClient()
    run = store / "runs/late"
    assert attempt(config_for(world, run, **KEYS), 7).code == EXIT_STOPPED
    assert train(world, run, "mlflow").code == EXIT_OK
    (found,) = client.search_runs([client.get_experiment_by_name("voices").experiment_id])
    for tag, points in expected(undisturbed).items():
        history = client.get_metric_history(found.info.run_id, tag)
        assert [one.step for one in history] == sorted(points), tag


def test_a_tracker_that_is_away_ends_nothing(
    world: World, store: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = store / "run"
    assert train(world, run, "mlflow").code == EXIT_OK
    assert state_of(newest(run)) == state_of(newest(undisturbed))
    complaints = [record.message for record in caplog.records if record.message.startswith("mlflow ")]
    assert len(complaints) == 1
    assert "training goes on" in complaints[0]


def test_a_tracker_that_is_not_installed_or_unknown_is_said_at_the_start(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else object())
    done = train(world, tmp_path / "run", "wandb")
    assert done.code == EXIT_CONFIG
    assert "pip install 'indextts-job[wandb]'" in done.error
    assert not list(tmp_path.iterdir())
