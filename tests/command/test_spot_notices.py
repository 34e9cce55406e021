"""A training process on a machine whose cloud announces its end."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml

from indextts_job.demo.world import World
from tests.support.attempts import attempt
from tests.support.metadata_server import AwsMetadata, GoogleMetadata, serving
from tests.support.runs import config_for, newest, samples, state_of, store_of
from tests.support.waiting import wait_until
from tests.support.warm_parent import REPOSITORY

KEYS: dict[str, object] = {"schedule__epochs": 100_000, "schedule__max_steps": 400, "checkpoint__interval_steps": 0}


def start(config: Path, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "indextts_job", "train", str(config), "--grace-seconds", "60"]
    own = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY, env=own
    )


def checkpoints(run: Path) -> Callable[[], bool]:
    return lambda: (run / "checkpoints").is_dir() and bool(store_of(run).names())


def test_a_recommendation_saves_and_an_interruption_stops_with_everything_committed(
    world: World, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(config_for(world, run, **KEYS).to_json()), encoding="utf-8")
    aws = AwsMetadata()
    aws.documents["events/recommendations/rebalance"] = '{"noticeTime": "2026-11-21T12:00:00Z"}'
    with serving(aws) as server:
        process = start(config, AWS_EC2_METADATA_SERVICE_ENDPOINT=server.url)
        wait_until(checkpoints(run), "a checkpoint for the higher risk")
        when = datetime.now(UTC) + timedelta(seconds=110)
        aws.documents["spot/instance-action"] = json.dumps({"action": "terminate", "time": when.isoformat()})
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "rebalance recommendation): saving now, training goes on" in output
    assert "spot interruption by AWS (terminate at" in output
    assert newest(run).name.step == max(samples(run)) < 400  # nothing is lost
    assert attempt(config_for(world, run, **KEYS)).code == 0
    assert attempt(config_for(world, tmp_path / "undisturbed", **KEYS)).code == 0
    assert state_of(newest(run)) == state_of(newest(tmp_path / "undisturbed"))


def test_a_notice_during_the_start_ends_it_at_once(world: World, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(config_for(world, tmp_path / "run", **KEYS).to_json()), encoding="utf-8")
    google = GoogleMetadata()
    google.preempted = "TRUE"
    with serving(google, Metadata_Flavor="Google") as server:
        process = start(config, AWS_EC2_METADATA_DISABLED="true", GCE_METADATA_HOST=server.address)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_local_launcher_does_not_hurry_on_a_machine_that_is_taken_away(world: World, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(config_for(world, tmp_path / "run", **KEYS).to_json()), encoding="utf-8")
    google = GoogleMetadata()
    google.preempted = "TRUE"
    with serving(google, Metadata_Flavor="Google") as server:
        own = {**os.environ, "AWS_EC2_METADATA_DISABLED": "true", "GCE_METADATA_HOST": server.address}
        command = [sys.executable, "-m", "launch", "local", str(config)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=own) as process:
            ends = (line for line in process.stdout or () if line.startswith("launcher"))
            first, second = next(ends), next(ends)
            process.terminate()
            rest = list(ends)
    assert first.endswith("starting it again\n")
    assert "starting it again in " in second
    assert rest == []
    assert process.returncode == 75
