"""The trainer in its container: stopped, killed, replaced by another, with its state in a bucket outside."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from indextts_job.demo.world import World
from tests.container.image import IMAGE, PROGRAMS, Container, build, call
from tests.s3.conftest import reach, s3_run, seaweed  # noqa: F401  # fixtures
from tests.s3.test_runs_in_a_bucket import bucket_config, bucket_world  # noqa: F401
from tests.support.attempts import attempt
from tests.support.parts import demand_as_root
from tests.support.runs import config_for, newest, state_of, store_of
from tests.support.servers import Server, client_environment
from tests.support.waiting import wait_until

_numbers = itertools.count()
KEYS: dict[str, Any] = {
    "schedule__epochs": 100_000,
    "schedule__max_steps": 1500,
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
) -> Iterator[Start]:
    """Starts containers that train one run, whose configuration lies in the bucket too."""
    config = bucket_config(world, bucket_world, s3_run, preemption__grace_seconds=15, **KEYS)
    url = f"{s3_run}-config.yaml"
    with fsspec.open(url, "w") as file:
        file.write(yaml.safe_dump(config.to_json()))
    started: list[Container] = []

    def start_one() -> Container:
        name = f"indextts-job-test-{next(_numbers)}"
        environment = {**client_environment(seaweed), "OMP_NUM_THREADS": "1"}
        started.append(Container.start(name, "train", url, environment=environment, volumes=()))
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
    assert "complete at step 1500" in third.log()
    assert state_of(newest(s3_run)) == undisturbed(world, tmp_path)


def test_the_image_holds_nothing_that_it_should_not() -> None:
    def inside(script: str) -> str:
        command = ["podman", "run", "--rm", "--runtime", "runc", "--network", "host", "--read-only"]
        command += ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--user", "0"]
        return call(*command, "--entrypoint", "/bin/sh", IMAGE, "-c", script).stdout.strip()

    assert inside("find / -xdev -type f -perm /6000 -path '/opt/*'") == ""
    assert inside("find /opt -xdev ! -type l -perm -o+w") == ""
    assert inside("command -v gcc cc pip git || true") == ""
    assert inside("find /var/lib/apt/lists /var/cache/apt /root/.cache -type f 2>/dev/null | head") == ""
    assert inside("ls -a /opt/indextts-job | grep -E 'git|tests|env' || true") == ""
    assert inside("touch /opt/x 2>&1 || true").endswith("Read-only file system")


def test_it_says_what_it_is_and_runs_as_nobody() -> None:
    shown = call("podman", "inspect", "--format", "{{.Config.User}} {{.Config.StopSignal}} {{.Config.Labels}}", IMAGE)
    assert shown.stdout.startswith("10001:10001 SIGTERM")
    assert "org.opencontainers.image.title:indextts-job" in shown.stdout
