"""The trainer in its container: stopped, killed, replaced by another, with its state in a bucket outside."""

import itertools
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from indextts_job.demo.world import World
from launch.job import Job
from launch.kubernetes.manifest import KubernetesOptions, render
from tests.container.image import IMAGE, PROGRAMS, REVISION, Container, build, call
from tests.s3.conftest import reach, s3_run, seaweed  # noqa: F401  # fixtures
from tests.s3.test_runs_in_a_bucket import bucket_config, bucket_world  # noqa: F401
from tests.support.attempts import attempt
from tests.support.parts import demand_as_root
from tests.support.runs import config_for, newest, state_of, store_of
from tests.support.servers import Server, client_environment
from tests.support.waiting import wait_until
from tests.support.warm_parent import REPOSITORY

_numbers = itertools.count()
KEYS: dict[str, Any] = {
    "schedule__epochs": 100_000,
    "schedule__max_steps": 600,
    "checkpoint__interval_steps": 100,
    "validation__interval_steps": 300,
    "report__log_interval_steps": 100,
}
Start = Callable[[], Container]


@pytest.fixture(scope="session", autouse=True)
def _image(tmp_path_factory: pytest.TempPathFactory) -> None:
    demand_as_root(PROGRAMS, " ".join(PROGRAMS))
    build(tmp_path_factory.mktemp("image"))


@pytest.fixture
def start(
    world: World,
    bucket_world: str,  # noqa: F811
    s3_run: str,  # noqa: F811
    seaweed: Server,  # noqa: F811
    tmp_path: Path,
) -> Iterator[Start]:
    """Starts containers that train one run, with the arguments and files that a pod of its Job gets."""
    config = bucket_config(world, bucket_world, s3_run, **KEYS)
    options = KubernetesOptions(config=yaml.safe_dump(config.to_json()))
    manifest = {found["kind"]: found for found in yaml.safe_load_all(render(Job(grace_seconds=15), options))}
    (trainer,) = manifest["Job"]["spec"]["template"]["spec"]["containers"]
    values = {entry["name"]: entry["value"] for entry in trainer["env"] if "value" in entry}
    arguments = [argument.replace("$(GRACE_SECONDS)", values["GRACE_SECONDS"]) for argument in trainer["args"]]
    folder = tmp_path / "config"
    folder.mkdir()
    for name, content in manifest["ConfigMap"]["data"].items():
        (folder / name).write_text(content, encoding="utf-8")
    volumes = (f"{folder}:{trainer['volumeMounts'][0]['mountPath']}:ro",)
    # The manifest says that the pod has asked for a GPU; there is none here.
    environment = {**client_environment(seaweed), **values, "OMP_NUM_THREADS": "1", "INDEXTTS_GPUS": "0"}
    started: list[Container] = []

    def start_one() -> Container:
        name = f"indextts-job-test-{next(_numbers)}"
        started.append(Container.start(name, *arguments, environment=environment, volumes=volumes))
        return started[-1]

    yield start_one
    for container in started:
        container.remove()


def undisturbed(world: World, folder: Path) -> dict[str, Any]:
    assert attempt(config_for(world, folder / "undisturbed", **KEYS)).code == 0
    return state_of(newest(folder / "undisturbed"))


def committed_beyond(run: str, step: int) -> Callable[[], bool]:
    def beyond() -> bool:
        names = store_of(run).names()
        return bool(names) and names[-1].step > step

    return beyond


def test_stopped_and_killed_containers_are_replaced_without_a_trace(
    start: Start,
    world: World,
    s3_run: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    first = start()
    wait_until(committed_beyond(s3_run, 0), "a checkpoint")
    assert first.stop(20) == 75, first.log()
    assert "SIGTERM" in first.log()
    stopped_at = newest(s3_run).name
    assert "preempted" in stopped_at.tags
    second = start()
    wait_until(committed_beyond(s3_run, stopped_at.step), "a later checkpoint")
    assert second.stop(0) == 137
    third = start()
    assert third.wait() == 0, third.log()
    assert "complete at step 600" in third.log()
    assert state_of(newest(s3_run)) == undisturbed(world, tmp_path)


def test_the_image_holds_nothing_that_it_should_not() -> None:
    options = "--runtime runc --network host --read-only --ulimit nofile=1024:1024 --ulimit nproc=1024:1024"
    environment = {**os.environ, "ENGINE": "podman", "RUN_OPTIONS": options}
    command = ["make", "--silent", "image-report", f"IMAGE={IMAGE}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY, env=environment)
    layers, python, debian, bad = done.stdout.split("\n== ")
    assert "COPY" in layers
    assert "MB  torch-2" in python.splitlines()[1]
    assert "indextts_job-" in python
    assert "python3" in debian
    assert bad.splitlines()[1:] == []


def test_the_image_examines_itself(s3_run: str, seaweed: Server) -> None:  # noqa: F811
    name = f"indextts-job-test-{next(_numbers)}"
    doctor = Container.start(
        name, "doctor", "gpu", s3_run, "--json", environment=client_environment(seaweed), volumes=()
    )
    try:
        assert doctor.wait() == 78  # there is no GPU here
        rows = {row["subject"]: row for row in json.loads(doctor.log())}
    finally:
        doctor.remove()
    assert rows["GPU"]["level"] == "error"
    assert {rows[subject]["level"] for subject in ("CPUs", "memory", "storage", "conditional writes")} == {"ok"}
    assert rows["scratch space"]["found"].endswith("free in /tmp")


def test_it_says_what_it_is_and_runs_as_nobody() -> None:
    shown = call("podman", "inspect", "--format", "{{.Config.User}} {{.Config.StopSignal}} {{.Config.Labels}}", IMAGE)
    assert shown.stdout.startswith("10001:10001 SIGTERM")
    assert "org.opencontainers.image.title:indextts-job" in shown.stdout
    asked = Container.start(f"indextts-job-test-{next(_numbers)}", "--version", environment={}, volumes=())
    try:
        assert asked.wait() == 0
        assert f"(commit {REVISION[:12]})" in asked.log()
    finally:
        asked.remove()
